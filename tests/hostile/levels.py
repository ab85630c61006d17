"""At which levels of isolation the attacks are tried, and what each of them stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apps.api.runner.guard import confinement, isolation, seccomp
from tests.layers import namespaces_work


@dataclass(frozen=True)
class Level:
    """A level of isolation.

    Attributes:
        settings: of the servers that have it.
        layers: which of `attacks.table.LAYERS` stand there.
        possible: whether this machine has it.
        profile: of the attacker's session.
        users: whose servers have it.
    """

    name: str
    settings: Mapping[str, str] = field(hash=False)
    layers: frozenset[str]
    possible: bool = True
    profile: str | None = None
    users: tuple[str, ...] = ("root", "ordinary")


GUARD = {"guard"}
LANDLOCK = {"files", "capabilities", "dropped"} | ({"scopes"} if confinement.landlock_abi() >= 6 else set())
CALLS = {"calls"}
OPEN = set() if isolation.network_lacks() else {"ports", "protocols"}
LIMITED = OPEN | {"limited"}
MODEL_ONLY = LIMITED | {"silent", "unix"}

UNCONFINED = {"AGENT_ISOLATION": "off", "AGENT_UNCONFINED_IN_PRODUCTION": "true"}
_LANDLOCK = {"AGENT_ISOLATION": "landlock", "AGENT_ISOLATION_REQUIRED": "true"}
_NAMESPACES = {"AGENT_ISOLATION": "namespaces", "AGENT_ISOLATION_REQUIRED": "true"}
_UNFILTERED, _FILTERED = {"AGENT_SECCOMP": "off"}, {"AGENT_SECCOMP": "on"}
_HAS_LANDLOCK, _HAS_SECCOMP = confinement.landlock_abi() > 0, seccomp.available()
_HAS_ALL = _HAS_LANDLOCK and _HAS_SECCOMP
_HAS_NETWORK = _HAS_ALL and bool(OPEN)
_WHOLE = GUARD | LANDLOCK | CALLS

LEVELS = (
    Level("off", UNCONFINED | _UNFILTERED, frozenset(GUARD)),
    Level("seccomp", UNCONFINED | _FILTERED, frozenset(GUARD | CALLS), _HAS_SECCOMP),
    Level("files", _LANDLOCK | _UNFILTERED, frozenset(GUARD | LANDLOCK | OPEN), _HAS_LANDLOCK),
    Level("landlock", _LANDLOCK | _FILTERED, frozenset(_WHOLE | OPEN), _HAS_ALL),
    Level(
        "namespaces",
        _NAMESPACES | _FILTERED,
        frozenset(_WHOLE | OPEN | {"namespaces"}),
        _HAS_ALL and namespaces_work(),
    ),
    Level("limited", _LANDLOCK | _FILTERED, frozenset(_WHOLE | LIMITED), _HAS_NETWORK, "limited", ("root",)),
    Level(
        "model_only", _LANDLOCK | _FILTERED, frozenset(_WHOLE | MODEL_ONLY), _HAS_NETWORK, "model_only", ("ordinary",)
    ),
    Level(
        "alone",
        _NAMESPACES | _FILTERED,
        frozenset(_WHOLE | MODEL_ONLY | {"namespaces"}),
        _HAS_NETWORK and namespaces_work(),
        "model_only",
        ("root",),
    ),
)
"""The first stops least: what it does not is what an attack can do at all."""

PROFILES = """
[limited]
description = "One host, and whatever it likes here"
network = "limited"
allowed_hosts = ["public.example"]
[model_only]
description = "The model, and whatever it likes here"
network = "model_only"
"""


def standing(level: Level, user: str) -> frozenset[str]:
    """The layers at a level for a user. An ordinary one has no capabilities, and nor has whom it attacks."""
    return level.layers if user == "root" else (level.layers - {"dropped"}) | {"capabilities"}
