"""Synchronization objects as pure machines at their home, a file each; `service` is the one door."""
