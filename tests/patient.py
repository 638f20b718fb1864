"""Managers wait for each other's answers without end: for tests that are not about who is silent.

A fork server imports this, for those whom it starts.
"""

from dsm.manager import gathering

gathering.COLLECT_S = 3600.0
