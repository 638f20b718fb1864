"""The coherence protocol: pure state machines, the same under a manager and in the simulator.

`engine` is the one door; `sequential` joins the three roles of a node, `requester`, `directory` and
`holder`; `states` is the whole table of transitions.  Must not know sockets, time or threads.
"""
