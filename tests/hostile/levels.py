"""At which levels of isolation the attacks are tried, and what each of them stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apps.api.runner.guard import confinement, isolation, seccomp


@dataclass(frozen=True)
class Level:
    """A level of isolation.

    Attributes:
        settings: of the servers that have it.
        layers: which of `attacks.table.LAYERS` stand there.
        possible: whether this machine has it.
        attacker: of the attacker's session.
        users: whose servers have it.
    """

    name: str
    settings: Mapping[str, str] = field(hash=False)
    layers: frozenset[str]
    possible: bool = True
    attacker: Mapping[str, str] = field(default_factory=dict, hash=False)
    users: tuple[str, ...] = ("root", "ordinary")


ALWAYS = {"guard"}
LANDLOCK = {"files", "capabilities", "dropped"} | ({"scopes"} if confinement.landlock_abi() >= 6 else set())
CALLS = {"calls"}
PORTS = {"ports"} if isolation.network_lacks() is None else set()
ALONE = Path(__file__).with_name("alone.toml")

LEVELS = (
    Level("off", {"AGENT_ISOLATION": "off", "AGENT_SECCOMP": "off"}, frozenset(ALWAYS)),
    Level(
        "seccomp",
        {"AGENT_ISOLATION": "off", "AGENT_SECCOMP": "on"},
        frozenset(ALWAYS | CALLS),
        seccomp.available(),
    ),
    Level(
        "landlock",
        {"AGENT_ISOLATION": "require", "AGENT_SECCOMP": "off"},
        frozenset(ALWAYS | LANDLOCK | PORTS),
        confinement.landlock_abi() > 0,
    ),
    Level(
        "require",
        {"AGENT_ISOLATION": "require", "AGENT_SECCOMP": "on"},
        frozenset(ALWAYS | LANDLOCK | CALLS | PORTS),
        confinement.landlock_abi() > 0 and seccomp.available(),
    ),
    Level(
        "model_only",
        {"AGENT_ISOLATION": "require", "AGENT_SECCOMP": "on", "PROFILES_FILE": str(ALONE)},
        frozenset(ALWAYS | LANDLOCK | CALLS | PORTS | {"reach"}),
        bool(PORTS),
        {"profile": "alone"},
        ("ordinary",),
    ),
)


def standing(level: Level, user: str) -> frozenset[str]:
    """The layers at a level for a user. An ordinary one has no capabilities, and nor has whom it attacks."""
    return level.layers if user == "root" else (level.layers - {"dropped"}) | {"capabilities"}
