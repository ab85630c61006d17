"""Plays a scenario with the Python client: `drive.py sync|async NAME PARAMETERS`, see `scenarios`.

Both clients have the same methods, so that a scenario is written once: `got` awaits what is to be awaited, and `each`
iterates what there is to iterate.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
from claude_agent_api import APIError, AsyncClient, ClaudeAgentError, Client, WebhookInvalid, verify_webhook

Parameters = dict[str, Any]
Play = Callable[[Any, Parameters], Awaitable[dict[str, Any]]]

MODES = {"sync": Client, "async": AsyncClient}
MODE = MODES[sys.argv[1]]


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(values: Any) -> AsyncIterator[Any]:
    if hasattr(values, "__aiter__"):
        async for value in values:
            yield value
    else:
        for value in values:
            yield value


async def error_of(doing: Callable[[], Any]) -> dict[str, Any] | None:
    """What it raises; None: nothing."""
    try:
        await got(doing())
    except ClaudeAgentError as error:
        names = ("status", "code", "retryable", "field")
        return {"kind": type(error).__name__, **{name: getattr(error, name, None) for name in names}}
    return None


def pass_gate(p: Parameters) -> None:
    httpx.get(p["gate"], timeout=120).raise_for_status()


async def conversation(client: Any, p: Parameters) -> dict[str, Any]:
    turn = await got(client.prompt(p["first"], title=p["title"]))
    streamed = "".join([words async for words in each(turn.text())])
    first = await got(turn.result())
    second = await got(client.ask(p["second"], session_id=turn.session_id))
    results = [first["result"], second["result"]]
    runs = [turn.run_id, second["run_id"]]
    return {"session_id": turn.session_id, "streamed": streamed, "results": results, "runs": runs}


async def stream_cut(client: Any, p: Parameters) -> dict[str, Any]:
    turn = await got(client.prompt(p["prompt"], **({"title": p["title"]} if "title" in p else {})))
    events, text, partials = [], "", 0
    async for event in each(turn):
        events.append([event["id"], event["event"]])
        if event["event"] == "partial":
            text += event["data"]["delta"].get("text", "")
            partials += 1
            if partials in p["partials"]:
                pass_gate(p)
    error = await error_of(turn.result)
    result = None if error else (await got(turn.result()))["result"]
    ids = {"session_id": turn.session_id, "run_id": turn.run_id}
    return {"events": events, "text": text, "result": result, "error": error, **ids}


async def permission_allowed(client: Any, p: Parameters) -> dict[str, Any]:
    asked = []

    def allow(request: Any) -> Any:
        asked.append([request.tool_name, request.input])
        pass_gate(p)
        return request.allow()

    turn = await got(client.prompt(p["prompt"], session_id=p["session_id"], on_permission=allow))
    events = [[event["id"], event["event"]] async for event in each(turn)]
    result = await got(turn.result())
    return {"asked": asked, "events": events, "result": result["result"], "run_id": turn.run_id}


async def permission_denied(client: Any, p: Parameters) -> dict[str, Any]:
    asked = []

    def deny(request: Any) -> Any:
        asked.append([request.tool_name, request.input])
        return request.deny(p["message"])

    result = await got(client.ask(p["prompt"], permission_mode="default", on_permission=deny))
    return {"asked": asked, "result": result["result"]}


async def question_answered(client: Any, p: Parameters) -> dict[str, Any]:
    asked: list[str] = []

    def answers(request: Any) -> Any:
        asked.extend(question["question"] for question in request.questions)
        return {question["question"]: p["answer"] for question in request.questions}

    async def slowly(request: Any) -> Any:
        await asyncio.sleep(0)
        return answers(request)

    callback = slowly if MODE is AsyncClient else answers
    result = await got(client.ask(p["prompt"], on_question=callback))
    return {"asked": asked, "result": result["result"]}


class _NobodyToAsk(Exception):
    pass


async def callback_raises(client: Any, p: Parameters) -> dict[str, Any]:
    def raises(_request: Any) -> Any:
        raise _NobodyToAsk("nobody to ask")

    turn = await got(client.prompt(p["prompt"], permission_mode="default", on_permission=raises))
    raised = None
    try:
        await got(turn.result())
    except _NobodyToAsk as error:
        raised = str(error)
    return {"raised": raised, "session_id": turn.session_id, "run_id": turn.run_id}


async def interrupted(client: Any, p: Parameters) -> dict[str, Any]:
    turn, events, asked = await got(client.prompt(p["prompt"])), [], False
    async for event in each(turn):
        events.append([event["id"], event["event"]])
        if event["event"] == "partial" and not asked:
            asked = True
            await got(turn.interrupt())
    return {"events": events, "error": await error_of(turn.result), "again": await error_of(turn.interrupt)}


async def text_of_a_failure(client: Any, p: Parameters) -> dict[str, Any]:
    turn = await got(client.prompt(p["prompt"]))

    async def read() -> None:
        async for _ in each(turn.text()):
            pass

    return {"error": await error_of(read)}


async def answer_lost(client: Any, p: Parameters) -> dict[str, Any]:
    result = await got(client.ask(p["prompt"], title=p["title"]))
    return {"result": result["result"], "session_id": result["session_id"]}


async def told_to_wait(client: Any, p: Parameters) -> dict[str, Any]:
    return {"result": (await got(client.ask(p["prompt"])))["result"]}


async def told_to_wait_too_long(client: Any, p: Parameters) -> dict[str, Any]:
    waits = []

    async def ask() -> None:
        try:
            await got(client.ask(p["prompt"]))
        except APIError as error:
            waits.append(error.retry_after)
            raise

    return {"error": await error_of(ask), "retry_after": waits[0] if waits else None}


async def pages(client: Any, p: Parameters) -> dict[str, Any]:
    return {"titles": [s["title"] async for s in each(client.sessions.list(tag=p["tag"], limit=p["limit"]))]}


async def files(client: Any, p: Parameters) -> dict[str, Any]:
    content = base64.b64decode(p["content"])
    session = (await got(client.sessions.create(permission_mode="bypassPermissions")))["session_id"]
    put = await got(client.files.put(session, p["path"], content))
    await got(client.ask(p["prompt"], session_id=session))
    listed = [file["path"] async for file in each(client.files.list(session, recursive=True))]
    made = await got(client.files.get(session, p["made"]))
    missing = await error_of(lambda: client.files.get(session, "not/there.txt"))
    uploaded = await got(client.files.upload(content, name=p["name"]))
    again = await got(client.files.download(uploaded["file_id"]))
    return {
        "put": put,
        "listed": listed,
        "got": base64.b64encode(made).decode(),
        "missing": missing,
        "uploaded": base64.b64encode(again).decode(),
        "name": uploaded["name"],
    }


async def fork_and_rewind(client: Any, p: Parameters) -> dict[str, Any]:
    options = {"permission_mode": "acceptEdits", "enable_file_checkpointing": True}
    first = await got(client.ask(p["first"], **options))
    session = first["session_id"]
    second = await got(client.ask(p["second"], session_id=session))
    at = (await got(client.runs.get(first["run_id"])))["last_seq"]
    fork = await got(client.sessions.fork(session, at_seq=at))
    recalled = await got(client.ask("recall", session_id=fork["session_id"]))
    rewound = await got(client.sessions.rewind(session, second["run_id"]))
    restored = await got(client.files.get(session, "a.txt"))
    return {
        "recalled": recalled["result"],
        "parent": fork["parent_session_id"],
        "session_id": session,
        "rewound": rewound,
        "restored": restored.decode(),
    }


async def webhook(client: Any, p: Parameters) -> dict[str, Any]:
    made = await got(client.webhooks.create(p["url"]))
    await got(client.webhooks.test(made["webhook_id"]))
    return {"secret": made["secret"], "webhook_id": made["webhook_id"]}


async def webhook_verified(client: Any, p: Parameters) -> dict[str, Any]:
    verified = []
    for message in p["messages"]:
        try:
            verified.append(verify_webhook(message["body"], message["headers"], message["secret"])["type"])
        except WebhookInvalid as error:
            verified.append(type(error).__name__)
    await got(client.webhooks.delete(p["webhook_id"]))
    return {"verified": verified}


async def mistakes(client: Any, p: Parameters) -> dict[str, Any]:
    stranger = MODE(p["base_url"], p["wrong_key"])
    nobody = MODE(p["nobody_url"], p["api_key"], max_retries=0)
    html = MODE(p["html_url"], p["api_key"], max_retries=0)

    async def listed() -> None:
        async for _ in each(stranger.sessions.list()):
            pass

    return {
        "unknown_key": await error_of(listed),
        "bad_input": await error_of(lambda: client.prompt("say hello", timeout_seconds=-1)),
        "unknown_session": await error_of(lambda: client.sessions.get(p["odd_id"])),
        "no_server": await error_of(lambda: nobody.sessions.get("any")),
        "no_api": await error_of(lambda: html.sessions.get("any")),
    }


PLAYS: dict[str, Play] = {
    "owner_killed": stream_cut,
    **{
        play.__name__: play
        for play in (conversation, stream_cut, permission_allowed, permission_denied, question_answered)
    },
    **{play.__name__: play for play in (callback_raises, interrupted, text_of_a_failure, answer_lost, told_to_wait)},
    **{play.__name__: play for play in (told_to_wait_too_long, pages, files, fork_and_rewind)},
    **{play.__name__: play for play in (webhook, webhook_verified, mistakes)},
}


async def main() -> None:
    parameters: Parameters = json.loads(sys.argv[3])
    client = MODE(parameters["base_url"], parameters["api_key"])
    print(json.dumps(await PLAYS[sys.argv[2]](client, parameters)))
    await got(client.close())


if __name__ == "__main__":
    asyncio.run(main())
