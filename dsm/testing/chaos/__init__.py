"""Chaos: jobs on real processes whose parts are killed, stopped and cut off at random moments.

``make chaos``, or ``python -m dsm.testing.chaos``.  The workers of each job update shared cells
under locks, each keeping a journal of what it is about to do and what came of it.  A seed decides which
process is killed or stopped when, and which link is cut for how long.  Afterwards the journals must show
that survivors only saw values that were written, that every wait ended in time, and that every error had
its cause; and nothing of the job may remain on the machine.

===========  =====================================================================================
`cells`      where the shared cells lie and what they hold
`journal`    what a worker writes down, unbuffered: it must survive SIGKILL
`program`    the worker: updates, looks, barriers, until it is told to stop
`plan`       jobs and their events, drawn from a seed
`processes`  managers and workers of one job
`job`        one job: its events happen, its waits are watched
`verdict`    what the journals must show
`timing`     how long each wait may take
`remains`    what a job left behind: nothing
===========  =====================================================================================
"""

from __future__ import annotations
