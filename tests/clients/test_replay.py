"""Streams of every kind, given to the clients as they are published: none of them finds fault with one."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from apps.api.core.codec import encode
from apps.api.core.events.frames import Frame
from apps.api.dialects.ag_ui.translate import Run
from apps.api.dialects.ag_ui.translate import line as event_line
from apps.api.dialects.ai_sdk.translate import DONE
from apps.api.dialects.ai_sdk.translate import Message as Fold
from apps.api.dialects.ai_sdk.translate import line as chunk_line
from apps.api.web.asking import Waiting
from tests.clients.surfaces.installed import installed
from tests.dialects.test_folds import ONE, RUN, SESSION, Log, asking, begun, result, use

Parts = list[list[Frame]]


def asked_twice() -> Parts:
    before, after = asking()
    cut = next(n for n, frame in enumerate(after) if frame.type == "permission_request") + 1
    return [before, after[:cut], after[cut:]]


def after_nothing_happens() -> Parts:
    """The stream after an answer ends before anything has come of it."""
    log = Log()
    return [[*begun(log), log.says(use("t1")), log.asks(ONE, "t1")], []]


def beside_work() -> Parts:
    log = Log()
    calls = [log.says(use("t1")), log.says(use("t2")), log.asks(ONE, "t2")]
    after = [log.decided(ONE, "allow"), log.hears(result("t2")), log.hears(result("t1")), log.says("ok"), *log.ends()]
    return [[*begun(log), *calls], after]


def ended(status: str) -> Callable[[], Parts]:
    def made() -> Parts:
        log = Log()
        events = [
            log("checkpoint", checkpoint_id=str(RUN), user_message_uuid=str(RUN), prompt="x"),
            log("task", task_id="a", status="started", description=None, summary=None, tool_use_id="t1"),
            log("hook", hook_event="Stop", decision="none", duration_ms=1, host=None, tool_name=None),
            log("files", created=["a"], changed=[], deleted=[], counts={"created": 1}),
            log("status", status="compacting"),
            log("network_denied", host="x", port=1, reason="host_not_allowed"),
        ]
        calls = [log.says(use("t1", "Task", subagent_type="x", description="y")), log.says("sub", parent="t1")]
        server = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
        found = {"type": "server_tool_result", "tool_use_id": "s1", "content": [{"type": "x"}]}
        odd = [log.says(server), log.says(found), log.says("\ud83d\u2028")]
        return [[*begun(log), *events, *odd, *calls, log.delta("half"), *log.ends(status)]]

    return made


CASES = {
    "asked twice": asked_twice,
    "nothing after an answer": after_nothing_happens,
    "asked beside work": beside_work,
    **{status: ended(status) for status in ("succeeded", "failed", "interrupted")},
}


def of_ai(parts: Parts) -> list[str]:
    streams, seen = list[str](), list[Frame]()
    for number, frames in enumerate(parts, 1):
        fold = Fold(str(SESSION), str(RUN))
        for frame in seen:
            fold.take(frame)
        chunks = fold.begin() + [chunk for frame in frames for chunk in fold.take(frame)]
        over = any(frame.type == "done" for frame in frames)
        chunks += [] if over else fold.pause()
        seen += frames
        streams.append((b"".join(map(chunk_line, chunks)) + DONE).decode())
        assert over or number < len(parts) or not frames
    return streams


def of_ag(parts: Parts) -> list[str]:
    streams, seen, waiting = list[str](), list[Frame](), Waiting()
    for number, frames in enumerate(parts, 1):
        run = Run(str(RUN))
        for frame in seen:
            run.take(frame)
        run.resume()
        ids = {"threadId": "t", "runId": str(number)}
        events = [{"type": "RUN_STARTED", **ids}, *(event for frame in frames for event in run.take(frame))]
        for frame in frames:
            waiting.take(frame)
        last, end = ([], run.end) if waiting.over else run.pause(waiting.open.values())
        seen += frames
        end = {**end, **(ids if end["type"] == "RUN_FINISHED" else {})}
        streams.append(b"".join(map(event_line, [*events, *last, end])).decode())
    return streams


def played(client: str, streams: list[str]) -> dict[str, Any]:
    words = ["node", "replay.mjs", client]
    found = subprocess.run(words, cwd=installed(), input=encode(streams), capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr.decode()
    got: dict[str, Any] = json.loads(found.stdout)
    return got


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("client", ["ai6", "ai7"])
async def test_the_ai_sdk_takes_what_it_is_given(client: str, case: str) -> None:
    streams = of_ai(CASES[case]())
    got = await asyncio.to_thread(played, client, streams)
    assert got["error"] == ("late" if case == "failed" else None)
    assert got["asked"] == len(streams)
    assert got["warnings"] == []
    states = [part.get("state") for part in got["messages"][-1]["parts"] if "toolCallId" in part]
    assert not {"input-streaming", "input-available"} & set(states)


@pytest.mark.parametrize("case", CASES)
async def test_ag_ui_takes_what_it_is_given(case: str) -> None:
    got = await asyncio.to_thread(played, "ag-ui", of_ag(CASES[case]()))
    assert (got["error"], got["warnings"]) == (None, [])
    assert got["end"]["type"] == ("RUN_ERROR" if case == "failed" else "RUN_FINISHED")
