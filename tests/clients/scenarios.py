"""What every client must do, whatever language it is in: the list of scenarios, each with what it must give.

A driver is a program that plays a scenario with its client: `DRIVER NAME PARAMETERS`, both words of its command line,
the second one JSON. It prints one JSON object on a line, its last one, and exits with 0. Parameters of every scenario:
`base_url`, `api_key`. What an error is in an answer:

    {"kind": "Unauthorized", "status": 401, "code": "invalid_api_key", "retryable": false, "field": null}

`kind` is the class's name; what a class does not have is null. `gate` is a URL: the driver sends it a GET, and goes on
when that is answered. Each docstring below says the parameters and the answer.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from tests.clients.stage import ANY_ORIGIN, Stage, busy, front, gate
from tests.fleet import Instance
from tests.proxy import Proxy
from tests.receiver import Received, Reply, receiving

Scenario = Callable[[Stage], Awaitable[None]]

SCENARIOS: dict[str, Scenario] = {}

SLOWLY = "stream 120 words every 50 ms"
WORDS = " ".join(f"word{number}" for number in range(1, 121))


def scenario(play: Scenario) -> Scenario:
    """Drivers know it by the function's name."""
    SCENARIOS[play.__name__] = play
    return play


@scenario
async def conversation(stage: Stage) -> None:
    """A prompt begins a session, read as it is written; a second one, by `ask`, goes on with it.

    `first`, `second`: prompts; `title`: of the session. → `session_id`; `streamed`: the first turn's `text()` joined;
    `results`: the two results' `result`; `runs`: the two run ids.
    """
    said = f"remember my name is Åsa 🦊 {uuid4()}"
    title = f"Grüße «{uuid4()}»"
    got = await stage.drive("conversation", stage.common(first=said, second="recall", title=title))
    assert got["streamed"] == got["results"][0]
    assert said in got["results"][1]
    listed = (await stage.get(f"/sessions/{got['session_id']}/runs"))["data"]
    assert [run["run_id"] for run in reversed(listed)] == got["runs"]
    assert (await stage.get(f"/sessions/{got['session_id']}"))["title"] == title


async def _played_slowly(stage: Stage, name: str, cuts: int, **more: Any) -> dict[str, Any]:
    """Play one that streams `SLOWLY`, and cut all connections as often as it comes to the gate."""
    async with gate() as at:
        given = stage.common(prompt=SLOWLY, gate=at.url, **more)
        return await stage.during(stage.drive(name, given), *(at.held(stage.balancer.drop) for _ in range(cuts)))


async def _each_once(stage: Stage, got: dict[str, Any]) -> None:
    """Every stored event came once and in order, and what is not stored between its neighbours."""
    ids = [tuple(int(part) for part in id_.split("-")) for id_, _ in got["events"] if id_]
    assert ids == sorted(set(ids)), ids
    stored = [(id_, event) for id_, event in got["events"] if event != "partial" and id_ and "-" not in id_]
    assert stored == await stage.stored_events(got["run_id"])


@scenario
async def stream_cut(stage: Stage) -> None:
    """Every connection breaks, several times, while a text is streamed.

    `prompt`; `gate`: asked after each `partial` whose number is in `partials`. → `events`: `[id, event]` of all;
    `text`: the text deltas joined; `result`: the final result's text; `error`: null; `session_id`, `run_id`.
    """
    got = await _played_slowly(stage, "stream_cut", 3, partials=[10, 40, 80])
    await _each_once(stage, got)
    assert (got["text"], got["result"], got["error"]) == (WORDS, WORDS, None)


@scenario
async def owner_killed(stage: Stage) -> None:
    """The instance that runs the agent is killed while a text is streamed.

    As `stream_cut`; `title`: of the session. `result`: null. `error`: what waiting for the result raises.
    """
    async with gate() as at:
        title = str(uuid4())
        given = stage.common(prompt=SLOWLY, gate=at.url, title=title, partials=[10])

        async def kill() -> None:
            session = (await stage.get("/sessions", params={"search": title}))["data"][0]["session_id"]
            owner = await stage.fleet.owner_of(session)
            owner.process.kill()
            await owner.ended()

        got = await stage.during(stage.drive("owner_killed", given), at.held(kill))
    await _each_once(stage, got)
    assert [event for _, event in got["events"]][-2:] == ["error", "done"]
    assert WORDS.startswith(got["text"])
    assert got["result"] is None
    told = {"kind": "RunFailed", "status": None, "code": "owner_lost", "retryable": True, "field": None}
    assert got["error"] == told


@scenario
async def permission_allowed(stage: Stage) -> None:
    """A callback allows a tool, while the instance dies that holds the stream, and that is not the session's owner.

    `session_id`, `prompt`; `gate`: asked in the callback, before it allows. → `asked`: `[tool_name, input]` of each
    request that the callback was asked; `events`, as `stream_cut`; `result`: text; `run_id`.
    """
    session, owner, others = await _owned(stage)
    stage.balancer.instances = others[:1]
    try:
        async with gate() as at:
            prompt = "run touch måde.txt && echo made"
            given = stage.common(session_id=session, prompt=prompt, gate=at.url)

            async def kill() -> None:
                stage.balancer.instances = [owner, *others[1:]]
                others[0].process.kill()
                await others[0].ended()

            got = await stage.during(stage.drive("permission_allowed", given), at.held(kill))
    finally:
        stage.balancer.instances = list(stage.fleet.instances)
    assert [(tool, asked["command"]) for tool, asked in got["asked"]] == [("Bash", "touch måde.txt && echo made")]
    assert got["result"].endswith("made")
    await _each_once(stage, got)


async def _owned(stage: Stage) -> tuple[str, Instance, list[Instance]]:
    """A session in the mode `default`, who owns it, and the others."""
    session = await (await stage.living()).session(permission_mode="default")
    await (await stage.living()).ask(session, "say hello")
    owner = await stage.fleet.owner_of(session)
    return session, owner, await stage.fleet.others(owner)


@scenario
async def permission_denied(stage: Stage) -> None:
    """A callback denies a tool, and the agent is told why.

    `prompt`, `message`. → `asked`, as `permission_allowed`; `result`: text.
    """
    given = stage.common(prompt="run touch never.txt", message="Nein, die Datei bleibt: «never.txt»")
    got = await stage.drive("permission_denied", given)
    assert [tool for tool, _ in got["asked"]] == ["Bash"]
    assert "Nein, die Datei bleibt: «never.txt»" in got["result"]


@scenario
async def question_answered(stage: Stage) -> None:
    """A callback answers a question.

    `prompt`; `answer`: for every question. → `asked`: the questions' texts; `result`: text.
    """
    got = await stage.drive(
        "question_answered", stage.common(prompt="ask Quelle couleur? options red, blå", answer="blå")
    )
    assert got["asked"] == ["Quelle couleur?"]
    assert "blå" in got["result"]


@scenario
async def callback_raises(stage: Stage) -> None:
    """What a callback raises comes to the caller, and the request stays open.

    `prompt`: with `on_permission` that raises an error of the driver's own. → `raised`: its message, as it came out of
    waiting for the result; `session_id`, `run_id`.
    """
    got = await stage.drive("callback_raises", stage.common(prompt="run touch open.txt"))
    assert got["raised"] == "nobody to ask"
    [request] = (await stage.get(f"/sessions/{got['session_id']}/requests"))["data"]
    assert (request["run_id"], request["status"]) == (got["run_id"], "open")
    cancelled = await (await stage.living()).post(f"/runs/{got['run_id']}/cancel")
    assert cancelled.status_code == 200, cancelled.text


@scenario
async def interrupted(stage: Stage) -> None:
    """A turn is interrupted when its first `partial` has come, and read to its end.

    `prompt`. → `events`, as `stream_cut`; `error`: what waiting for the result raises; `again`: null, or the error of a
    second `interrupt` of the turn that is over.
    """
    got = await stage.drive("interrupted", stage.common(prompt="stream 600 words slowly"))
    assert got["events"][-1][1] == "done"
    assert (got["error"]["kind"], got["error"]["code"]) == ("RunFailed", "interrupted")
    assert got["again"] is None


@scenario
async def text_of_a_failure(stage: Stage) -> None:
    """Who reads nothing but the text learns that the run has failed.

    `prompt`. → `error`: what iterating the text raises, after what was written.
    """
    got = await stage.drive("text_of_a_failure", stage.common(prompt="fail with 400 saying No."))
    told = {"kind": "RunFailed", "status": None, "code": "model_request_invalid", "retryable": False, "field": None}
    assert got["error"] == told


@scenario
async def answer_lost(stage: Stage) -> None:
    """The answer to a prompt is lost on its way: it is sent again, and runs once.

    `prompt`, `title`. → `result`: text; `session_id`.
    """
    proxy = Proxy(int((await stage.living()).url.rpartition(":")[2]))
    await proxy.start()
    try:
        proxy.loses = (proxy.answers, re.compile(rb"x-run-id|\"run_id\"", re.IGNORECASE))
        title = str(uuid4())
        given = {**stage.common(prompt="say once", title=title), "base_url": f"http://127.0.0.1:{proxy.port}"}
        got = await stage.drive("answer_lost", given)
    finally:
        await proxy.close()
    assert proxy.loses is None, "nothing was lost"
    assert got["result"].endswith("once")
    sessions = (await stage.get("/sessions", params={"search": title}))["data"]
    assert [session["session_id"] for session in sessions] == [got["session_id"]]
    assert len((await stage.get(f"/sessions/{got['session_id']}/runs"))["data"]) == 1


@scenario
async def told_to_wait(stage: Stage) -> None:
    """429 and 503 with `Retry-After` are waited for.

    `prompt`. → `result`: text.
    """
    first = [busy(429, "rate_limited", 2), busy(503, "dependency_unavailable", 1)]
    async with front((await stage.living()).url, first) as before:
        given = {**stage.common(prompt="say hello"), "base_url": before.url("").rstrip("/")}
        got = await stage.drive("told_to_wait", given)
    assert got["result"].endswith("hello")
    asked = [r for r in before.received if r.target.startswith("/api/") and r.method != "OPTIONS"]
    assert asked[1].at - asked[0].at >= 2
    assert asked[2].at - asked[1].at >= 1
    assert len({request.headers["idempotency-key"] for request in asked[:3]}) == 1


@scenario
async def told_to_wait_too_long(stage: Stage) -> None:
    """Who is told to wait longer than a caller would gets the error at once.

    `prompt`. → `error`; `retry_after`: of it, seconds.
    """
    async with front((await stage.living()).url, [busy(429, "rate_limited", 86400)]) as before:
        given = {**stage.common(prompt="say hello"), "base_url": before.url("").rstrip("/")}
        got = await stage.drive("told_to_wait_too_long", given)
    told = {"kind": "RateLimited", "status": 429, "code": "rate_limited", "retryable": True, "field": None}
    assert (got["error"], got["retry_after"]) == (told, 86400)


@scenario
async def pages(stage: Stage) -> None:
    """A list is iterated over all its pages.

    `tag`, `limit`: of each page. → `titles`: of the sessions with the tag.
    """
    tag, titles = f"täg {uuid4()}", [f"Sitzung {number} ✓" for number in range(5)]
    instance = await stage.living()
    for title in titles:
        await instance.session(title=title, tags=[tag])
    got = await stage.drive("pages", stage.common(tag=tag, limit=2))
    assert got["titles"] == titles[::-1]


@scenario
async def files(stage: Stage) -> None:
    """A file is put, the agent makes another one of it, and that is downloaded; a file of the tenant likewise.

    `path`, `content` (base64), `prompt`, `made`: the path of what the agent makes. A session in the mode
    `bypassPermissions`. → `put`: the file's state; `listed`: all paths; `got`: base64 of `made`; `missing`: the error
    of asking for a file that is not there; `uploaded`: base64 of what comes back of `content` uploaded as `name`;
    `name`: as the server has it.
    """
    content = bytes(range(256)) * 100
    path, made, name = "dätä/a b?c#d%.bin", "çopy/ü.bin", "übersicht «1».bin"
    prompt = f"run mkdir -p çopy && cp '{path}' {made}"
    packed = base64.b64encode(content).decode()
    given = stage.common(path=path, content=packed, prompt=prompt, made=made, name=name)
    got = await stage.drive("files", given)
    assert (got["put"]["path"], got["put"]["size"]) == (path, len(content))
    assert {path, made} <= set(got["listed"])
    assert base64.b64decode(got["got"]) == content
    assert (got["missing"]["kind"], got["missing"]["code"]) == ("NotFound", "file_not_found")
    assert base64.b64decode(got["uploaded"]) == content
    assert got["name"] == name


@scenario
async def fork_and_rewind(stage: Stage) -> None:
    """A session of two prompts is forked after the first one, and its files are rewound to before the second one.

    `first`, `second`: prompts of a session with `acceptEdits` and `enable_file_checkpointing`; the fork, at the
    `last_seq` of the first run, is asked `recall`. → `recalled`: the fork's result; `parent`: its `parent_session_id`;
    `session_id`; `rewound`: the answer of the rewind; `restored`: the text of `a.txt`.
    """
    first, second = "write a.txt: eins", "edit a.txt: eins => zwei"
    got = await stage.drive("fork_and_rewind", stage.common(first=first, second=second))
    assert first in got["recalled"]
    assert second not in got["recalled"]
    assert got["parent"] == got["session_id"]
    assert got["rewound"]["files_changed"] == ["a.txt"]
    assert got["restored"] == "eins"


@scenario
async def webhook(stage: Stage) -> None:
    """A message is verified, and refused when it was changed, or is old, or another secret signed it.

    `url`: to register, for `webhook.test`. The driver creates the webhook and has it tested. → `secret`, `webhook_id`.
    Then, as `webhook_verified`, `messages`: `{body, headers, secret}` each; `webhook_id`: to be deleted. → `verified`:
    for each the message's `type`, or the error's kind.
    """
    async with receiving() as receiver:
        made = await stage.drive("webhook", stage.common(url=receiver.url("/hook")))
        [sent] = [r for r in await receiver.until(len) if r.json["type"] == "webhook.test"]
    headers = {name: value for name, value in sent.headers.items() if name.startswith("webhook-")}
    body, secret = sent.body.decode(), made["secret"]
    another = "whsec_" + base64.b64encode(b"another secret of 24 bytes").decode()
    old = {**headers, "webhook-timestamp": str(int(time.time()) - 3600)}
    unsigned = {name: value for name, value in headers.items() if name != "webhook-signature"}
    both = {**headers, "webhook-signature": f"v1,AAAA v1a,x {headers['webhook-signature']}"}
    messages = [
        {"body": body, "headers": headers, "secret": secret},
        {"body": body, "headers": both, "secret": secret},
        {"body": body.replace("webhook.test", "run.succeeded"), "headers": headers, "secret": secret},
        {"body": body, "headers": old, "secret": secret},
        {"body": body, "headers": unsigned, "secret": secret},
        {"body": body, "headers": headers, "secret": another},
    ]
    got = await stage.drive("webhook_verified", stage.common(messages=messages, webhook_id=made["webhook_id"]))
    assert (await stage.get("/webhooks"))["data"] == []
    assert got["verified"] == ["webhook.test"] * 2 + ["WebhookInvalid"] * 4


@scenario
async def mistakes(stage: Stage) -> None:
    """What a user's mistakes give.

    → an error each: `unknown_key`: `sessions.list` with `wrong_key`; `bad_input`: a prompt with the `timeout_seconds`
    -1; `unknown_session`: `sessions.get` of `odd_id`; `no_server`: the same at `nobody_url`, with no retries;
    `no_api`: at `html_url`, with no retries.
    """

    async def page(request: Received) -> Reply:
        if request.method == "OPTIONS":
            return Reply(headers={**ANY_ORIGIN, "Access-Control-Allow-Headers": "*"})
        return Reply(b"<html><h1>502 Bad Gateway</h1></html>", 502, {"Content-Type": "text/html", **ANY_ORIGIN})

    async with receiving() as other:
        other.answer = page
        got = await stage.drive(
            "mistakes",
            stage.common(
                wrong_key="cak_wröng",
                odd_id="a/../b?c=d#e %2F ü",
                nobody_url="http://127.0.0.1:9",
                html_url=other.url("").rstrip("/"),
            ),
        )

    def error(kind: str, status: int | None, code: str | None, retryable: bool, field: str | None = None) -> Any:
        return {"kind": kind, "status": status, "code": code, "retryable": retryable, "field": field}

    assert got["unknown_key"] == error("Unauthorized", 401, "invalid_api_key", False)
    assert got["bad_input"] == error("ValidationError", 422, "validation_error", False, "timeout_seconds")
    assert got["unknown_session"]["kind"] in ("NotFound", "ValidationError"), got
    assert got["unknown_session"]["code"] in ("session_not_found", "not_found", "validation_error"), got
    assert got["no_server"] == error("ConnectionFailed", None, None, True)
    assert got["no_api"] == error("ServerError", 502, None, True)
    assert json.dumps(got).isprintable()
