"""Locks, barriers and atomic cells as pure machines at their home; `service` is the one door."""
