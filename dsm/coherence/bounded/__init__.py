"""Bounded staleness: read leases, one writer token a page, no invalidations (`region` says how)."""
