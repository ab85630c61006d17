"""An instance's own view of its lease."""

from __future__ import annotations

import sys
import time
from uuid import uuid4

from apps.api.core import lease
from apps.api.core.lease import Lease
from apps.api.runner.guard.launcher import CLOCK


def test_who_listens_is_told_until_when_the_instance_may_act() -> None:
    told: list[float] = []
    mine = Lease(uuid4(), 100)
    mine.tell(told.append)
    mine.renewed(1000.0)
    mine.renewed(900.0)  # its answer came late
    mine.give_up()
    assert told == [0, 1085, 1085, 0]


def test_guards_read_the_lease_on_the_clock_on_which_it_is_kept() -> None:
    """It goes on while the machine is suspended: then others may have taken its sessions."""
    assert lease.CLOCK == CLOCK
    if sys.platform == "linux":
        assert lease.CLOCK == time.CLOCK_BOOTTIME
        assert abs(lease.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 30
