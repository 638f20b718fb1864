"""The coherence protocol: pure state machines, the same under a manager and in the simulator.

`engine` is the one door.  `region` is what the consistency models share; `sequential` joins the three roles
of a node, `requester`, `directory` and `holder`; `release` and `bounded` are packages with the roles that
differ.  `states` is the whole table of transitions.  Must not know sockets, time or threads.
"""
