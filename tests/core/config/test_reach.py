"""What agents reach by name: of the server's word and the profile's the stricter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from apps.api.core.config.agent import AgentConfig
from apps.api.core.config.profiles import Profile, clamp, load, problems, reach_of
from apps.api.core.config.reach import Reach
from apps.api.settings import Settings

HOSTS = ["packages.example.org", "*.modules.example.org", "git.example.com:8443", "*.deep.example.com:22"]


def profile(**given: Any) -> Profile:
    return Profile(description="d", **given)


def server(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("packages.example.org", 443, True),
        ("Packages.Example.org.", 80, True),
        ("packages.example.org", 22, False),
        ("files.packages.example.org", 443, False),
        ("registry.modules.example.org", 443, True),
        ("a.b.modules.example.org", 443, True),
        ("modules.example.org", 443, False),
        ("evilmodules.example.org", 443, False),
        ("registry.modules.example.org.evil.org", 443, False),
        (".modules.example.org", 443, False),
        ("git.example.com", 8443, True),
        ("git.example.com", 443, False),
        ("a.deep.example.com", 22, True),
        ("", 443, False),
    ],
)
def test_a_host_is_named_by_its_name_and_port(host: str, port: int, named: bool) -> None:
    reach = Reach("limited", (HOSTS,))
    assert reach.names(host, port) is named
    assert Reach("open").names(host, port)
    assert not Reach("model_only").names(host, port)


@pytest.mark.parametrize(
    ("settings", "given", "mode", "lists"),
    [
        ({}, None, "open", ()),
        ({}, {}, "open", ()),
        ({"agent_network": "direct"}, {}, "direct", ()),
        ({"agent_network": "direct"}, {"network": "open"}, "open", ()),
        ({}, {"network": "limited", "allowed_hosts": ["a.org"]}, "limited", (["a.org"],)),
        ({"agent_network": "model_only"}, {"network": "open"}, "model_only", ()),
        ({"agent_network": "model_only"}, {"network": "limited", "allowed_hosts": ["a.org"]}, "model_only", ()),
        ({"agent_network": "limited", "agent_allowed_hosts": "b.org"}, {"network": "open"}, "limited", (("b.org",),)),
        (
            {"agent_network": "limited", "agent_allowed_hosts": "b.org"},
            {"network": "limited", "allowed_hosts": ["a.org"]},
            "limited",
            (("b.org",), ["a.org"]),
        ),
        ({"agent_isolation": "off"}, {"network": "model_only"}, "direct", ()),
        ({"agent_isolation": "off"}, {"network": "model_only", "isolation": "landlock"}, "model_only", ()),
    ],
)
def test_of_server_and_profile_the_stricter_holds(
    settings: dict[str, Any], given: dict[str, Any] | None, mode: str, lists: tuple[Any, ...]
) -> None:
    found = reach_of(None if given is None else profile(**given), server(**settings))
    assert (found.mode, found.lists) == (mode, lists)


def test_a_host_must_be_in_every_list() -> None:
    both = Reach("limited", (("a.org", "b.org"),)).within(Reach("limited", (("b.org", "c.org"),)))
    assert [name for name in ("a.org", "b.org", "c.org") if both.names(name, 443)] == ["b.org"]


@pytest.mark.parametrize(
    "given",
    [
        {"network": "limited"},
        {"network": "limited", "allowed_hosts": []},
        {"allowed_hosts": ["a.org"]},
        {"network": "open", "allowed_hosts": ["a.org"]},
        {"network": "direct"},
        *({"network": "limited", "allowed_hosts": [wrong]} for wrong in ("http://a.org", "a.org/b", "*", "a.*.org")),
        *({"network": "limited", "allowed_hosts": [wrong]} for wrong in ("*a.org", "a b", "a.org:x", "[::1]", "ä.org")),
    ],
)
def test_a_profile_that_means_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        profile(**given)
    with pytest.raises(ValidationError):
        server(agent_network=given.get("network", "open"), agent_allowed_hosts=given.get("allowed_hosts", ("x y",)))


def test_only_the_sandbox_of_the_packaged_profiles_has_a_word_on_the_network() -> None:
    assert {name: found.network for name, found in load(None).items() if found.network} == {"sandboxed": "model_only"}


def test_an_mcp_server_out_of_reach_is_refused_and_left_out() -> None:
    one = profile(network="limited", allowed_hosts=["tools.example.org"])
    there, elsewhere = "https://tools.example.org/mcp", "https://tools.example.org:8443/mcp"
    config = AgentConfig.model_validate(
        {
            "mcp_servers": {"there": {"type": "http", "url": there}, "elsewhere": {"type": "sse", "url": elsewhere}},
            "agents": {
                "helper": {"description": "d", "prompt": "p", "mcp_servers": {"x": {"type": "http", "url": elsewhere}}}
            },
        }
    )
    fields = ["agents.helper.mcp_servers.x.url", "mcp_servers.elsewhere.url"]
    assert sorted(problem.field for problem in problems(one, config)) == fields
    assert list(clamp(one, config).mcp_servers or ()) == ["there"]
    assert problems(profile(network="open"), config) == []
    assert len(problems(profile(network="model_only"), config)) == 3
