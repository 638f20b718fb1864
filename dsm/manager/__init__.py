"""The process of a node: one event loop that drives the pure floors over real sockets and memory.

`manager` joins the parts.  Must not know the user's API.
"""
