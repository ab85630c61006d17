"""The process between the server and one Claude CLI. Run as a script by the launcher that `guard.py` writes.

It gives the CLI only what it may have (an allow-listed environment, a Landlock domain around its files), hides the
model key from the environment of the agent's tools, and makes the CLI and everything the CLI started end together:
when the CLI ends, when the guard is told to end, and when the server dies in any way.

Standard library only, and few modules of it: every start of a CLI waits for this file. What the guard needs after
the CLI has been started is imported after it, too.

Exit status: the CLI's own; 78 when isolation is required and not to be had; 126 or 127 when the CLI cannot be run.

Sources: prctl(2), landlock(7), linux/landlock.h, and the bundled CLI 2.1 for the two *_FILE_DESCRIPTOR variables.
"""

from __future__ import annotations

import sys

LINUX = sys.platform == "linux"
EX_CONFIG = 78

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ = 9, 13, 15, 25
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
