"""What can be asked of sessions, runs and requests: each method builds a request, see `_calls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from claude_agent_api import _asking
from claude_agent_api._asking import Answers
from claude_agent_api._calls import Pages, call, listing
from claude_agent_api._request import Request, given, new_key, path
from claude_agent_api.types import (
    Accepted,
    Answered,
    Applied,
    Checkpoint,
    ClientToken,
    ContextUse,
    DecisionBody,
    Difference,
    ForkOptions,
    Message,
    RequestState,
    Rewound,
    RunState,
    SessionRemoved,
    SessionState,
    SessionUsage,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from claude_agent_api.types import ControlBody, PatchBody, PromptOptions, SessionBody, TokenBody

OVER = frozenset({"no_live_run"})
DELETED = frozenset({"session_deleted"})

RunStatus = Literal["queued", "running", "requires_action", "succeeded", "failed", "interrupted"]
SessionStatus = Literal["idle", "queued", "running", "requires_action"]


def prompting(
    prompt: str | Sequence[Mapping[str, Any]], session_id: str | None, key: str | None, options: Mapping[str, Any]
) -> Request[None]:
    """A prompt whose answer is the stream of its run."""
    body = {"prompt": _words(prompt), **({"session_id": session_id} if session_id is not None else {}), **options}
    headers = {"Accept": "text/event-stream"}
    return Request("POST", "/query", json=body, headers=headers, idempotency_key=new_key(key))


def _words(prompt: str | Sequence[Mapping[str, Any]]) -> Any:
    return prompt if isinstance(prompt, str) else [dict(block) for block in prompt]


class SessionCalls:
    @call
    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[SessionBody]) -> Request[SessionState]:
        """A session with these options; nothing is started until its first prompt."""
        return Request("POST", "/sessions", json=dict(fields), idempotency_key=new_key(idempotency_key))

    @call
    def get(self, session_id: str) -> Request[SessionState]:
        """What it is and does."""
        return Request("GET", path("sessions", session_id))

    @listing
    def list(
        self,
        *,
        status: SessionStatus | None = None,
        tag: str | None = None,
        search: str | None = None,
        agent: str | None = None,
        end_user: str | None = None,
        created_after: datetime | str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> Pages[SessionState]:
        """All of them, newest first. `search`: a part of the title; `metadata`: entries that it has."""
        asked = {"status": status, "tag": tag, "search": search, "agent": agent, "created_after": created_after}
        entries = {"end_user": end_user} | {f"metadata.{name}": value for name, value in (metadata or {}).items()}
        return Pages("/sessions", {**asked, **entries}, limit)

    @call
    def update(self, session_id: str, **fields: Unpack[PatchBody]) -> Request[SessionState]:
        """Another title, other tags, other metadata."""
        return Request("PATCH", path("sessions", session_id), json=dict(fields))

    @call
    def client_token(self, session_id: str, **fields: Unpack[TokenBody]) -> Request[ClientToken]:
        """What a browser or an app of an end user gets in place of a key: for this session, for a while."""
        return Request("POST", path("sessions", session_id, "client-tokens"), json=dict(fields), repeatable=True)

    @call
    def delete(self, session_id: str) -> Request[SessionRemoved | None]:
        """Stop and remove it. None: it is gone, and the answer that said how was lost on the way."""
        return Request("DELETE", path("sessions", session_id), done_codes=DELETED)

    @call
    def prompt(
        self,
        session_id: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Request[Accepted]:
        """Queue a prompt and do not wait for it; `runs.follow` does."""
        body = {"prompt": _words(prompt), **options}
        where = path("sessions", session_id, "query")
        return Request("POST", where, json=body, idempotency_key=new_key(idempotency_key))

    @call
    def fork(
        self, session_id: str, *, idempotency_key: str | None = None, **options: Unpack[ForkOptions]
    ) -> Request[SessionState]:
        """A new session with what this one has said and made, up to `at_seq` or `message_uuid` if you say so."""
        where = path("sessions", session_id, "fork")
        return Request("POST", where, json=dict(options), idempotency_key=new_key(idempotency_key))

    @call
    def rewind(
        self, session_id: str, checkpoint_id: str, *, dry_run: bool = False, idempotency_key: str | None = None
    ) -> Request[Rewound | Accepted]:
        """Files as they were before a prompt; `Accepted`: it waits for its turn, and is to be followed as a run."""
        body = {"checkpoint_id": checkpoint_id, "dry_run": dry_run}
        where = path("sessions", session_id, "rewind")
        return Request("POST", where, json=body, idempotency_key=new_key(idempotency_key))

    @listing
    def checkpoints(self, session_id: str, *, limit: int | None = None) -> Pages[Checkpoint]:
        """To what its files can be rewound."""
        return Pages(path("sessions", session_id, "checkpoints"), {}, limit)

    @listing
    def messages(self, session_id: str, *, limit: int | None = None) -> Pages[Message]:
        """The conversation, oldest first."""
        return Pages(path("sessions", session_id, "messages"), {}, limit)

    @call
    def interrupt(self, session_id: str, *, run_id: str | None = None) -> Request[Applied | None]:
        """Stop what it runs now, or what is queued first; with `run_id` that run alone. None: it is over."""
        # Without the id, a repeat could stop the run after the one that is meant.
        once = run_id is not None
        where, body = path("sessions", session_id, "interrupt"), given({"run_id": run_id})
        return Request("POST", where, json=body, repeatable=once, done_codes=OVER)

    @call
    def control(self, session_id: str, **changes: Unpack[ControlBody]) -> Request[Applied]:
        """Change the live agent."""
        return Request("POST", path("sessions", session_id, "control"), json=dict(changes))

    @call
    def reset(
        self, session_id: str, mode: Literal["soft", "hard"], *, idempotency_key: str | None = None
    ) -> Request[Applied]:
        """`soft`: a new agent process; `hard`: a new conversation, too."""
        where = path("sessions", session_id, "reset")
        return Request("POST", where, json={"mode": mode}, idempotency_key=new_key(idempotency_key))

    @call
    def context(self, session_id: str) -> Request[ContextUse]:
        """How full the context window is; asks the live agent."""
        return Request("GET", path("sessions", session_id, "context"))

    @call
    def usage(self, session_id: str) -> Request[SessionUsage]:
        """What it has cost."""
        return Request("GET", path("sessions", session_id, "usage"))

    @call
    def diff(
        self, session_id: str, *, since: Literal["run", "checkpoint"] | None = None, checkpoint_id: str | None = None
    ) -> Request[Difference]:
        """What has changed in its workspace."""
        return Request("GET", path("sessions", session_id, "diff"), {"since": since, "checkpoint_id": checkpoint_id})


class RunCalls:
    @call
    def get(self, run_id: str) -> Request[RunState]:
        """Status, result, error, cost."""
        return Request("GET", path("runs", run_id))

    @listing
    def list(
        self,
        *,
        session_id: str | None = None,
        status: RunStatus | None = None,
        agent: str | None = None,
        end_user: str | None = None,
        error_code: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        limit: int | None = None,
    ) -> Pages[RunState]:
        """Those of all sessions, newest first."""
        asked = {"session_id": session_id, "status": status, "agent": agent, "error_code": error_code}
        asked["end_user"] = end_user
        return Pages("/runs", {**asked, "created_after": created_after, "created_before": created_before}, limit)

    @call
    def interrupt(self, run_id: str) -> Request[Applied | None]:
        """Stop this run, also a queued one; None: it is over, since an attempt whose answer was lost has stopped it."""
        return cancelling(run_id)


def cancelling(run_id: str, *, already: bool = False) -> Request[Applied | None]:
    """`already`: it is no error that the run is over."""
    where = path("runs", run_id, "cancel")
    return Request("POST", where, repeatable=True, done_codes=OVER, done_at_once=already)


class RequestCalls:
    @call
    def get(self, request_id: str) -> Request[RequestState]:
        """What an agent asks, and what came of it."""
        return Request("GET", path("requests", request_id))

    @listing
    def list(
        self, *, session_id: str | None = None, status: Literal["open", "all"] | None = None, limit: int | None = None
    ) -> Pages[RequestState]:
        """Those that are open, of one session or of all."""
        where = path("sessions", session_id, "requests") if session_id is not None else "/requests"
        return Pages(where, {"status": status}, limit)

    @call
    def decide(self, session_id: str, request_id: str, decision: DecisionBody) -> Request[Answered | None]:
        """Allow a tool call, or deny it. None: it is decided, since an attempt whose answer was lost has done it."""
        return _asking.decide(session_id, request_id, decision)

    @call
    def answer(self, session_id: str, request_id: str, answers: Answers) -> Request[Answered | None]:
        """Answer questions, by their texts; None as for `decide`."""
        return _asking.answer(session_id, request_id, answers)

    @call
    def tool_result(
        self, session_id: str, request_id: str, content: Any, *, is_error: bool = False
    ) -> Request[Answered | None]:
        """The result of a tool of your own program, for which a `client_tool_call` waits; None as for `decide`."""
        where = path("sessions", session_id, "tool-results", request_id)
        body = {"content": content, "is_error": is_error}
        return Request("POST", where, json=body, repeatable=True, done_codes=_asking.RESOLVED)
