"""The verbs of leases over the network: ``dsm lease``, ``get``, ``set``, ``renew``, ``release``, ``leases``.

A file each; `common` has their options and how they fail.  They talk to a lease server (`dsm.client`) and
need neither a node nor numpy.
"""
