"""The diff of a dry run: from the transcript's word of which copy stands for which file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from apps.api.core.sessions.workspaces import Workspace
from apps.api.runner.agent import checkpoints

MESSAGES = [UUID(int=number) for number in range(1, 4)]
CONVERSATION = UUID(int=9)


def snapshot(message: UUID, **copies: Any) -> dict[str, Any]:
    return {
        "type": "file-history-snapshot",
        "messageId": str(message),
        "snapshot": {"messageId": str(message), "trackedFileBackups": copies},
    }


def delta(message: UUID, path: str, copy: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file-history-delta", "snapshotMessageId": str(message), "trackingPath": path, "backup": copy}


def copy(name: str | None, version: int) -> dict[str, Any]:
    return {"backupFileName": name, "version": version}


def workspace(tmp_path: Path, **copies: str) -> Workspace:
    made = Workspace(tmp_path / "w", tmp_path / "w" / "sub", tmp_path / "h", tmp_path / "home", tmp_path / "output")
    made.cwd.mkdir(parents=True)
    (made.history / str(CONVERSATION)).mkdir(parents=True)
    for name, text in copies.items():
        (made.history / str(CONVERSATION) / name.replace("_", "@")).write_text(text)
    return made


COPY_1, COPY_2 = "0123456789abcdef@v1", "0123456789abcdef@v2"


async def diff(made: Workspace, entries: list[dict[str, Any]], message: UUID, *paths: str) -> tuple[str, bool]:
    return await checkpoints.diff(made, CONVERSATION, entries, message, list(paths))


async def test_the_copy_of_the_message_is_compared_or_else_the_first_one(tmp_path: Path) -> None:
    made = workspace(tmp_path, **{"0123456789abcdef_v1": "one\n", "0123456789abcdef_v2": "two\n"})
    (made.cwd / "a.txt").write_text("three\n")
    entries = [
        snapshot(MESSAGES[0]),
        snapshot(MESSAGES[1]),
        delta(MESSAGES[1], "a.txt", copy(COPY_1, 1)),
        snapshot(MESSAGES[2], **{"a.txt": copy(COPY_2, 2)}),
    ]
    shown = [await diff(made, entries, message, "sub/a.txt") for message in MESSAGES]
    assert [("+one" in text, "+two" in text, left) for text, left in shown] == [
        (True, False, False),
        (True, False, False),
        (False, True, False),
    ]
    assert "\n--- a/sub/a.txt\n+++ b/sub/a.txt\n" in shown[0][0]


async def test_files_that_come_or_go_are_shown_whole(tmp_path: Path) -> None:
    made = workspace(tmp_path, **{"0123456789abcdef_v1": "gone\n"})
    (made.cwd / "new.txt").write_text("new\n")
    entries = [snapshot(MESSAGES[0], **{"old.txt": copy(COPY_1, 1), "new.txt": copy(None, 1)})]
    text, left = await diff(made, entries, MESSAGES[0], "sub/new.txt", "sub/old.txt")
    assert ("-new" in text, "+gone" in text, left) == (True, True, False)


async def test_what_is_large_or_led_elsewhere_is_left_out(tmp_path: Path) -> None:
    made = workspace(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    (made.cwd / "large").write_text("x" * (checkpoints.MAX_DIFFED_BYTES + 1))
    (made.cwd / "link").symlink_to(secret)
    (made.history / str(CONVERSATION) / COPY_1).symlink_to(secret)
    names = ("large", "link")
    copies = {**{name: copy(None, 1) for name in names}, "copied": copy(COPY_1, 1), "named": copy("../../secret", 1)}
    entries = [snapshot(MESSAGES[0], **copies)]
    for name in copies:
        assert await diff(made, entries, MESSAGES[0], f"sub/{name}") == ("", True), name
    assert await diff(made, entries, MESSAGES[0], str(secret)) == ("", True)
