"""What can be asked of files, presets, schedules, webhooks, keys and usage: each method builds a request (`_calls`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, cast

from claude_agent_api._calls import Pages, call, listing
from claude_agent_api._request import Body, Request, file_path, given, new_key, nothing, path
from claude_agent_api.types import (
    Delivery,
    FileObject,
    FileState,
    Firing,
    KeySecret,
    KeyState,
    PresetState,
    ScheduleDetails,
    ScheduleState,
    SessionUsage,
    UsageReport,
    UsageRow,
    WebhookState,
    WebhookType,
    WebhookWithSecret,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from claude_agent_api.types import (
        KeyBody,
        KeyPatch,
        PresetBody,
        PresetFields,
        ScheduleBody,
        SchedulePatch,
        WebhookPatch,
    )

Content = Union[bytes, str, "os.PathLike[str]"]
"""Bytes; a text; or a `Path`, a file on this machine."""

BINARY = {"Content-Type": "application/octet-stream"}
PIECE = 256 * 1024
DIRECTORY_LIMIT = 1000


def _sending(content: Content) -> tuple[Body, dict[str, str]]:
    """The body, and its headers: a file of this machine is read anew for each attempt."""
    if isinstance(content, (str, bytes)):
        sent = content.encode() if isinstance(content, str) else content
        return lambda: sent, BINARY
    file = Path(content)
    return lambda: _read(file), {**BINARY, "Content-Length": str(file.stat().st_size)}


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


class FileCalls:
    """Files of a session's workspace by `session_id` and `path`; of the tenant (`upload`) by `file_id`."""

    @listing
    def list(
        self, session_id: str, *, path: str | None = None, recursive: bool = False, limit: int | None = DIRECTORY_LIMIT
    ) -> Pages[FileState]:
        """What is in the workspace, or in a directory of it."""
        return Pages(_of(session_id), {"path": path, "recursive": recursive}, limit)

    @call
    def put(
        self,
        session_id: str,
        path: str,
        content: Content,
        *,
        if_match: str | None = None,
        if_none_match: Literal["*"] | None = None,
    ) -> Request[FileState]:
        """Store a file. `if_match`: only over the one with this `etag`; `if_none_match`: only where there is none."""
        conditions = given({"If-Match": if_match, "If-None-Match": if_none_match})
        # The condition does not hold a second time, when the answer to the first one was lost.
        once = not conditions
        body, headers = _sending(content)
        headers = {**headers, **conditions}
        return Request("PUT", _of(session_id, path), body=body, headers=headers, repeatable=once)

    @call
    def get(self, session_id: str, path: str) -> Request[bytes]:
        """What is in a file."""
        return Request("GET", _of(session_id, path), headers={"Accept": "*/*"}, read=bytes)

    @call
    def delete(self, session_id: str, path: str, *, recursive: bool = False) -> Request[None]:
        """Remove a file, or a directory."""
        query, gone = {"recursive": recursive or None}, frozenset({"file_not_found"})
        return Request("DELETE", _of(session_id, path), query, done_codes=gone, read=nothing)

    @call
    def move(self, session_id: str, source: str, target: str, *, overwrite: bool = False) -> Request[FileState]:
        """Move or rename."""
        body = {"source": source, "target": target, "overwrite": overwrite}
        return Request("POST", _of(session_id, "move"), json=body)

    @call
    def upload(
        self,
        content: Content,
        *,
        name: str | None = None,
        expires_in_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Request[FileObject]:
        """A file that sessions and prompts are given by `resources=[{"file_id": …}]`."""
        named = name or (Path(content).name if isinstance(content, os.PathLike) else "file")
        query, key = {"name": named, "expires_in_seconds": expires_in_seconds}, new_key(idempotency_key)
        body, headers = _sending(content)
        return Request("POST", "/files", query, body=body, headers=headers, idempotency_key=key)

    @listing
    def uploads(self, *, limit: int | None = None) -> Pages[FileObject]:
        """The tenant's, newest first."""
        return Pages("/files", {}, limit)

    @call
    def upload_state(self, file_id: str) -> Request[FileObject]:
        """Name, type, size, SHA-256, times."""
        return Request("GET", path("files", file_id))

    @call
    def download(self, file_id: str) -> Request[bytes]:
        """What is in a file of the tenant."""
        return Request("GET", path("files", file_id, "content"), headers={"Accept": "*/*"}, read=bytes)

    @call
    def delete_upload(self, file_id: str) -> Request[None]:
        """Remove a file of the tenant; workspaces keep theirs."""
        gone = frozenset({"file_not_found"})
        return Request("DELETE", path("files", file_id), done_codes=gone, read=nothing)


def _of(session_id: str, file: str | None = None) -> str:
    return path("sessions", session_id, "files") + (file_path(file) if file is not None else "")


class PresetCalls:
    """Presets, `agents` in the API's routes; one is named by its name, its id, or `name@version`."""

    @call
    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[PresetBody]) -> Request[PresetState]:
        """A preset, in its first version."""
        return Request("POST", "/agents", json=dict(fields), idempotency_key=new_key(idempotency_key))

    @call
    def get(self, preset: str, *, version: int | None = None) -> Request[PresetState]:
        """The newest version, or this one."""
        return Request("GET", path("agents", preset), {"version": version})

    @listing
    def list(self, *, search: str | None = None, limit: int | None = None) -> Pages[PresetState]:
        """All of them."""
        return Pages("/agents", {"search": search}, limit)

    @call
    def update(self, preset: str, **fields: Unpack[PresetFields]) -> Request[PresetState]:
        """A new version, with these fields changed."""
        # A repeat would be one more version.
        return Request("PATCH", path("agents", preset), json=dict(fields), repeatable=False)

    @call
    def replace(self, preset: str, **fields: Unpack[PresetFields]) -> Request[PresetState]:
        """A new version, with these fields and no others."""
        return Request("PUT", path("agents", preset), json=dict(fields), repeatable=False)

    @call
    def delete(self, preset: str) -> Request[None]:
        """Remove it."""
        return Request("DELETE", path("agents", preset), done_codes=frozenset({"agent_not_found"}), read=nothing)

    @listing
    def versions(self, preset: str, *, limit: int | None = None) -> Pages[PresetState]:
        """Its versions, newest first."""
        return Pages(path("agents", preset, "versions"), {}, limit)


class ScheduleCalls:
    """Prompts that are sent at times of a clock."""

    @call
    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[ScheduleBody]) -> Request[ScheduleDetails]:
        """Needs `cron` and `prompt`. It acts for the key that makes it."""
        return Request("POST", "/schedules", json=dict(fields), idempotency_key=new_key(idempotency_key))

    @call
    def get(self, schedule_id: str) -> Request[ScheduleDetails]:
        """With its next times as `upcoming`, and what came of its newest as `last`."""
        return Request("GET", path("schedules", schedule_id))

    @listing
    def list(self, *, limit: int | None = None) -> Pages[ScheduleState]:
        """All of them, newest first."""
        return Pages("/schedules", {}, limit)

    @call
    def update(self, schedule_id: str, **fields: Unpack[SchedulePatch]) -> Request[ScheduleDetails]:
        """Change it. From now on it acts for the key that changes it."""
        return Request("PATCH", path("schedules", schedule_id), json=dict(fields))

    @call
    def delete(self, schedule_id: str) -> Request[None]:
        """Remove it with the list of its firings; their sessions stay."""
        gone = frozenset({"schedule_not_found"})
        return Request("DELETE", path("schedules", schedule_id), done_codes=gone, read=nothing)

    @call
    def pause(self, schedule_id: str) -> Request[ScheduleDetails]:
        """Fire it no more until it is resumed."""
        return Request("POST", path("schedules", schedule_id, "pause"))

    @call
    def resume(self, schedule_id: str) -> Request[ScheduleDetails]:
        """Fire it again, from its next time on."""
        return Request("POST", path("schedules", schedule_id, "resume"))

    @call
    def run(self, schedule_id: str, *, idempotency_key: str | None = None) -> Request[Firing]:
        """Fire it now, paused or not."""
        return Request("POST", path("schedules", schedule_id, "run"), idempotency_key=new_key(idempotency_key))

    @listing
    def runs(self, schedule_id: str, *, limit: int | None = None) -> Pages[Firing]:
        """What came of its times, the newest first."""
        return Pages(path("schedules", schedule_id, "runs"), {}, limit)


class WebhookCalls:
    @call
    def create(
        self,
        url: str,
        *,
        events: Sequence[WebhookType] | None = None,
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> Request[WebhookWithSecret]:
        """An endpoint that is told what happens; keep its `secret` for `verify_webhook`."""
        body = given({"url": url, "events": events and [*events], "description": description})
        return Request("POST", "/webhooks", json=body, idempotency_key=new_key(idempotency_key))

    @call
    def get(self, webhook_id: str) -> Request[WebhookState]:
        """Without its secret."""
        return Request("GET", path("webhooks", webhook_id))

    @listing
    def list(self, *, limit: int | None = None) -> Pages[WebhookState]:
        """All of them."""
        return Pages("/webhooks", {}, limit)

    @call
    def update(self, webhook_id: str, **fields: Unpack[WebhookPatch]) -> Request[WebhookState]:
        """Change it, or start it again with `enabled=True`."""
        return Request("PATCH", path("webhooks", webhook_id), json=dict(fields))

    @call
    def delete(self, webhook_id: str) -> Request[None]:
        """Remove it, with its log."""
        gone = frozenset({"webhook_not_found"})
        return Request("DELETE", path("webhooks", webhook_id), done_codes=gone, read=nothing)

    @call
    def rotate(self, webhook_id: str) -> Request[WebhookWithSecret]:
        """A new secret; for 24 hours messages are signed with the old one, too."""
        return Request("POST", path("webhooks", webhook_id, "rotate"))

    @call
    def test(self, webhook_id: str) -> Request[Delivery]:
        """Send it `webhook.test`."""
        return Request("POST", path("webhooks", webhook_id, "test"))

    @listing
    def deliveries(self, webhook_id: str, *, limit: int | None = None) -> Pages[Delivery]:
        """What became of each message, newest first."""
        return Pages(path("webhooks", webhook_id, "deliveries"), {}, limit)

    @call
    def redeliver(self, webhook_id: str, delivery_id: str) -> Request[Delivery]:
        """Send a message once more."""
        return Request("POST", path("webhooks", webhook_id, "deliveries", delivery_id, "redeliver"))


class KeyCalls:
    """API keys: for operators, whose key has the scope `admin`."""

    @call
    def create(self, **fields: Unpack[KeyBody]) -> Request[KeySecret]:
        """A key; its `secret` is shown this once. Not repeated by itself: there would be two."""
        return Request("POST", "/admin/keys", json=dict(fields))

    @call
    def get(self, key_id: str) -> Request[KeyState]:
        """Without its secret."""
        return Request("GET", path("admin", "keys", key_id))

    @listing
    def list(self, *, tenant: str | None = None, limit: int | None = None) -> Pages[KeyState]:
        """All of them, or a tenant's."""
        return Pages("/admin/keys", {"tenant": tenant}, limit)

    @call
    def update(self, key_id: str, **fields: Unpack[KeyPatch]) -> Request[KeyState]:
        """Change what it may do."""
        return Request("PATCH", path("admin", "keys", key_id), json=dict(fields))

    @call
    def rotate(self, key_id: str, *, overlap_seconds: int | None = None) -> Request[KeySecret]:
        """A new secret; the old one holds for so long."""
        body = given({"overlap_seconds": overlap_seconds})
        return Request("POST", path("admin", "keys", key_id, "rotate"), json=body)

    @call
    def revoke(self, key_id: str) -> Request[KeyState]:
        """End it."""
        return Request("POST", path("admin", "keys", key_id, "revoke"), repeatable=True)


GroupBy = Literal["day", "key", "model", "session", "end_user"]


class UsageCalls:
    """Tokens and cost by day, key, model, session and end user, between two days (`start`, `end`), both included."""

    @call
    def report(
        self,
        *,
        group_by: GroupBy | list[GroupBy] | None = None,
        start: date | str | None = None,
        end: date | str | None = None,
        session_id: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
        end_user: str | None = None,
    ) -> Request[UsageReport]:
        """Sums and budgets, with the first groups."""
        return Request(
            "GET", "/usage", _usage(group_by, start, end, session_id, key_id, model=model, end_user=end_user)
        )

    @listing
    def rows(
        self,
        *,
        group_by: GroupBy | list[GroupBy] | None = None,
        start: date | str | None = None,
        end: date | str | None = None,
        session_id: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
        end_user: str | None = None,
        limit: int | None = None,
    ) -> Pages[UsageRow]:
        """All groups."""
        return Pages("/usage", _usage(group_by, start, end, session_id, key_id, model=model, end_user=end_user), limit)

    @call
    def of_session(self, session_id: str) -> Request[SessionUsage]:
        """What a session has cost."""
        return Request("GET", path("sessions", session_id, "usage"))


def _usage(group_by: Any, start: Any, end: Any, session_id: Any, key_id: Any, **only: Any) -> dict[str, Any]:
    groups = ",".join(group_by) if isinstance(group_by, (list, tuple)) else group_by
    return {"group_by": groups, "from": start, "to": end, "session_id": session_id, "key_id": key_id, **only}


def anything(method: str, route: str, query: Mapping[str, Any] | None, body: Any) -> Request[Any]:
    """Any request of the API, for what has no method here; `route`: below `/api/v1`, as in the document."""
    return Request(method.upper(), "/" + route.lstrip("/"), query or {}, json=body, read=_json_or_none)


def _json_or_none(body: bytes) -> Any:
    return cast(Any, json.loads(body)) if body else None
