"""What agents may reach over the network: the server's word and the profile's, of which the stricter holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from apps.api.settings import Settings

Network = Literal["open", "limited", "model_only"]
"""What a profile may say."""

Mode = Literal["direct", "open", "limited", "model_only"]
_ORDER: tuple[Mode, ...] = ("direct", "open", "limited", "model_only")

USUAL_PORTS = (80, 443)
"""Those of an allowed host that names none."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What an agent may reach.

    Attributes:
        mode: `direct` for whatever the host reaches.
        lists: of `limited`: lists of allowed hosts, as `settings.HOST` says. A host must be in each of them.
    """

    mode: Mode = "direct"
    lists: tuple[Sequence[str], ...] = ()

    def within(self, other: Reach) -> Reach:
        """What both allow."""
        mode = max(self.mode, other.mode, key=_ORDER.index)
        return Reach(mode, (*self.lists, *other.lists) if mode == "limited" else ())

    def names(self, host: str, port: int) -> bool:
        """Whether a host may be reached by its name and port; its address is judged elsewhere."""
        if self.mode == "limited":
            name = host.lower().removesuffix(".")
            return all(any(_is(entry, name, port) for entry in entries) for entries in self.lists)
        return self.mode != "model_only"

    def reason_against(self, url: str) -> str | None:
        """Why an http or https URL is out of reach by its name, if it is."""
        parts = urlsplit(url)
        if self.names(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)):
            return None
        return "agents reach the model alone" if self.mode == "model_only" else "its host is not among the allowed ones"


def narrowed(network: Mapping[str, Any] | None) -> Reach:
    """What an agent may reach at most whose session names hosts: `{"allowed_hosts": […]}`; None: what others allow."""
    if network is None:
        return Reach()
    return Reach("limited", (tuple(network["allowed_hosts"]),)) if network["allowed_hosts"] else Reach("model_only")


def of_server(settings: Settings) -> Reach:
    """What agents of this server may reach at most, and do without a profile that says something."""
    return Reach(settings.agent_network, (settings.agent_allowed_hosts,) if settings.agent_allowed_hosts else ())


def _is(entry: str, host: str, port: int) -> bool:
    name, found, number = entry.lower().partition(":")
    fits = host.endswith(name[1:]) and host != name[1:] if name.startswith("*.") else host == name
    return fits and (port == int(number) if found else port in USUAL_PORTS)
