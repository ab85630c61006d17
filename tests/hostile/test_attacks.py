"""Every attack of the table, by the real CLI's Bash, at every level of isolation, as root and as an ordinary user.

Each must come to nothing where something stands that stops it, and succeed where nothing does: so none fails by a
mistake of its own, and a layer that is new shows itself here. What an unconfined process of the same user cannot do
either is no attack; that may be so on some machines only for those of the table that say so.
"""

from __future__ import annotations

import importlib
import os
import signal

import pytest

from tests.conftest import StartFleet
from tests.hostile.arena import Arena, Outcomes, all_is_well, opened
from tests.hostile.attacks.table import TABLE, Attack
from tests.hostile.conftest import WIDE
from tests.hostile.levels import LEVELS
from tests.watch import watched

GROUPS = ("files", "processes", "kernel", "network", "resources")
for _group in GROUPS:
    importlib.import_module(f"tests.hostile.attacks.{_group}")

SIGNALLED = {
    "have the kernel signal a service of the machine": signal.SIGUSR1,
    "leave a signal in the queue of a service of the machine": signal.SIGUSR2,
}
"""Attacks whose success only the attacked can tell."""

possible: dict[str, Outcomes] = {}
"""What an unconfined process of a user could do, by the user."""


async def told(arena: Arena, outcomes: Outcomes) -> Outcomes:
    """The outcomes, with what the attacked have noticed."""
    heard = arena.heard()
    (arena.root / "host" / "heard").write_text("")
    for name, number in SIGNALLED.items():
        if "seen" in outcomes[name] and number not in heard:
            outcomes[name] = {"held": "no signal came"}
    for name, outcome in outcomes.items():
        word, _, path = outcome.get("seen", "").partition("made ")
        if not word and path:
            try:
                os.unlink(path)
            except FileNotFoundError:
                outcomes[name] = {"held": "it is there for itself alone"}
    return outcomes


def flaw(attack: Attack, outcome: dict[str, str] | None, free: dict[str, str], arena: Arena) -> str | None:
    """What is wrong with an outcome, if anything."""
    if outcome is None:
        return "was not tried"
    if "broken" in outcome or "broken" in free:
        return outcome.get("broken") or free["broken"]
    if "seen" not in free:
        if attack.by_kernel or arena.user == "ordinary":
            return "could not be done, and was" if "seen" in outcome else None
        return f"is none: an unconfined process could not do it either ({free['held']})"
    stopped = attack.stopped_by & arena.layers
    if "seen" in outcome and stopped:
        return f"SUCCEEDED, though {', '.join(sorted(stopped))} should stop it: {outcome['seen']}"
    if "held" in outcome and not stopped:
        return f"held, and nothing that is known here stops it: {outcome['held']}"
    return None


async def freely(arena: Arena, start_fleet: StartFleet) -> Outcomes:
    """What an unconfined process of an arena's user can do where nothing confines anybody: in namespaces others' memory
    would be out of its sight as well."""
    if arena.user not in possible:
        if arena.level is LEVELS[0]:
            possible[arena.user] = await told(arena, await arena.unconfined(*GROUPS))
        else:
            async with opened(start_fleet, LEVELS[0], arena.user, {}, **WIDE) as free:
                await freely(free, start_fleet)
    return possible[arena.user]


@pytest.mark.timeout(600)
async def test_attacks_come_to_nothing_where_something_stands(arena: Arena, start_arena_fleet: StartFleet) -> None:
    free = await freely(arena, start_arena_fleet)
    async with watched(arena.instance):
        outcomes = await told(arena, await arena.attack(*GROUPS))
        await all_is_well(arena)
    flaws = {name: flaw(attack, outcomes.get(name), free[name], arena) for name, attack in TABLE.items()}
    for name, outcome in outcomes.items():
        print("SUCCEEDED" if "seen" in outcome else "held     ", name, outcome, "| unconfined:", free[name])
    found = [f"{name}: {what}" for name, what in flaws.items() if what]
    assert not found, "\n".join(found)
