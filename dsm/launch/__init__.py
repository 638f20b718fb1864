"""Starting programs: managers and workers as processes of this machine.

Owns what `dsm run` and `dsm node` do.  Knows managers by their command line and their ready line
only, and workers by their environment; it imports neither.

===============  ===================================================================================
`run`, `node`    the two verbs: their options, and what they print
`job`            one run from start to end: which failure was first, who is told, which status
`cluster`        the managers of a run, from the first to the last
`managers`       one manager: start it, read its ready line, guard groups through it
`workers`        start a worker in a process group of its own, and its environment
`output`         lines of many processes on one terminal, never mixed, never blocking
`terminal`       keyboard input for rank 0
`loop`           epoll, timers and signals in one place
`processes`      exit statuses without reaping, descendants, signals to groups
`ranks`          which ranks live on which node
===============  ===================================================================================
"""
