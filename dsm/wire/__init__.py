"""Bytes and message types between processes, and the proof of the secret.  Pure: opens no socket."""
