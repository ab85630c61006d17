"""What an agent asks a person, and the answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Union, cast

from claude_agent_api._request import Request, given, path
from claude_agent_api.types import (
    Answered,
    DecisionBody,
    Event,
    PermissionRequestData,
    Question,
    QuestionData,
)

Answers = Mapping[str, Union[str, "list[str]"]]
"""By the question's text: the label that was chosen, several labels, or words of one's own."""

RESOLVED = frozenset({"request_resolved"})


class PermissionRequest:
    """A tool call that waits for a person.

    Attributes:
        data: the event's: `title`, `description`, `suggestions`, `expires_at` and more.
        tool_name, input: what is to be called, and with what.
    """

    def __init__(self, data: PermissionRequestData) -> None:
        self.data = data
        self.request_id, self.session_id = data["request_id"], data["session_id"]
        self.tool_name, self.input = data["tool_name"], data["input"]

    def allow(self, *, updated_input: dict[str, Any] | None = None, remember: bool = False) -> DecisionBody:
        """The tool runs: with another input if you say so; `remember`: not asked again in this session."""
        return cast(DecisionBody, given({"decision": "allow", "updated_input": updated_input, "remember": remember}))

    def deny(self, message: str | None = None, *, interrupt: bool = False) -> DecisionBody:
        """It does not, and the agent is told why; `interrupt`: the run ends."""
        return cast(DecisionBody, given({"decision": "deny", "message": message, "interrupt": interrupt}))


class QuestionRequest:
    """Questions of the agent.

    Attributes:
        data: the event's.
        questions: each with `question`, `options` (with `label`) and `multiSelect`.
    """

    def __init__(self, data: QuestionData) -> None:
        self.data = data
        self.request_id, self.session_id = data["request_id"], data["session_id"]
        self.questions: list[Question] = data["questions"]


OnPermission = Callable[[PermissionRequest], "DecisionBody | None"]
OnQuestion = Callable[[QuestionRequest], "Answers | None"]
OnPermissionAsync = Callable[[PermissionRequest], "DecisionBody | Awaitable[DecisionBody | None] | None"]
OnQuestionAsync = Callable[[QuestionRequest], "Answers | Awaitable[Answers | None] | None"]


def asks(event: Event, on_permission: Any, on_question: Any) -> Callable[[], Any] | None:
    """What is to be called for an event, if anything is."""
    if event["event"] == "permission_request" and on_permission is not None:
        permission = PermissionRequest(event["data"])
        return lambda: on_permission(permission)
    if event["event"] == "question" and on_question is not None:
        question = QuestionRequest(event["data"])
        return lambda: on_question(question)
    return None


def answering(event: Event, said: Any) -> Request[Answered | None] | None:
    """The request that answers for a callback; None: it has left that to somebody else. Somebody may be faster."""
    data = cast("dict[str, Any]", event["data"])
    if said is None:
        return None
    if event["event"] == "permission_request":
        return decide(data["session_id"], data["request_id"], said, already=True)
    return answer(data["session_id"], data["request_id"], said, already=True)


def decide(session_id: str, request_id: str, body: Any, *, already: bool = False) -> Request[Answered | None]:
    where = path("sessions", session_id, "permissions", request_id)
    return Request("POST", where, json=body, repeatable=True, done_codes=RESOLVED, done_at_once=already)


def answer(session_id: str, request_id: str, answers: Answers, *, already: bool = False) -> Request[Answered | None]:
    where, body = path("sessions", session_id, "answer"), {"answers": dict(answers), "request_id": request_id}
    return Request("POST", where, json=body, repeatable=True, done_codes=RESOLVED, done_at_once=already)
