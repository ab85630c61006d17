"""Hooks as they are configured: what can never mean anything is refused when it arrives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet import Fleet

URL = "https://hooks.example/in"


@pytest.fixture(scope="module")
async def secret(fleet: Fleet) -> str:
    response = await fleet[0].client.put("/api/v1/secrets/CHECKED", json={"value": "key"})
    assert response.status_code in (200, 201)
    return "${CHECKED}"


@pytest.mark.parametrize(
    ("event", "more", "reason"),
    [
        ("PreToolUse", {"matcher": "Bash("}, "no regular expression"),
        ("PreToolUse", {"matcher": "(?i)bash"}, "must not contain"),
        ("PreToolUse", {"matcher": "a*+"}, "must not contain"),
        ("PreToolUse", {"matcher": r"\bBash"}, "pattern"),
        ("Stop", {"matcher": "Bash"}, "not about a tool"),
        ("UserPromptSubmit", {"matcher": "*"}, "not about a tool"),
        ("Stop", {"on_failure": "deny"}, "cannot be denied"),
        ("Notification", {"on_failure": "deny"}, "cannot be denied"),
        ("SessionStart", {}, "hooks"),
        ("PreToolUse", {"url": "ftp://hooks.example/"}, "http"),
        ("PreToolUse", {"url": "https://user:word@hooks.example/"}, "user"),
        ("PreToolUse", {"secret": "plain"}, "pattern"),
        ("PreToolUse", {"timeout_seconds": 61}, "60"),
        ("PreToolUse", {"more": 1}, "more"),
    ],
)
async def test_a_hook_that_cannot_work_is_refused(
    fleet: Fleet, secret: str, event: str, more: dict[str, Any], reason: str
) -> None:
    hooks = {event: [{"url": URL, "secret": secret, **more}]}
    response = await fleet[0].post("/sessions", {"hooks": hooks})
    assert response.status_code == 422, response.text
    assert reason in response.json()["error"]["message"]


async def test_a_secret_that_is_missing_is_named_before_anything_starts(fleet: Fleet, secret: str) -> None:
    hooks = {"Stop": [{"url": URL, "secret": secret}, {"url": URL, "secret": "${MISSING_ONE}"}]}
    session_id = await fleet[0].session()
    for path, body in (
        ("/sessions", {}),
        ("/query/single", {"prompt": "say hello"}),
        (f"/sessions/{session_id}/query", {"prompt": "say hello"}),
    ):
        response = await fleet[1].post(path, {**body, "hooks": hooks})
        assert response.status_code == 422, path
        [error] = response.json()["error"]["details"]["errors"]
        assert error == {"field": "hooks.Stop.1.secret", "reason": "there is no secret named MISSING_ONE"}
    assert (await fleet[0].get(f"/sessions/{session_id}/runs")).json()["data"] == []


@pytest.mark.parametrize("matcher", ["*", "Edit|Write", "mcp__.*", "^Bash$", "(Web)?Fetch", "[A-Z].+"])
async def test_a_hook_that_can_work_is_shown_as_it_was_given(fleet: Fleet, secret: str, matcher: str) -> None:
    hooks = {"PreToolUse": [{"url": URL, "secret": secret, "matcher": matcher}]}
    made = await fleet[0].post("/sessions", {"hooks": hooks})
    assert made.json()["config"]["hooks"]["PreToolUse"][0]["matcher"] == matcher
