"""The directories of sessions: where the links of a copy lead."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from apps.api.core.files import forking
from apps.api.core.sessions import workspaces
from apps.api.settings import Settings
from tests.core.files.travel import Store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"database_url": "postgresql://h/d", "workspaces_dir": tmp_path / "workspaces"}
    return Settings(_env_file=None, **given)  # type: ignore[arg-type]


def fork(settings: Settings, sessions: tuple[UUID, UUID], conversations: tuple[UUID, UUID]) -> None:
    """Make of one session's files those of its fork, here."""
    theirs, ours = (workspaces.places(settings, session_id) for session_id in sessions)
    change = partial(forking.fork, places=theirs, sessions=sessions, conversations=conversations)
    asyncio.run(Store(settings.workspaces_root / ".store").move(theirs, ours, change))


SPELLINGS = [
    "{0}",
    "/{0}",
    "//{0}",
    "/proc/self/root{0}",
    "/proc/self/../self/root/.{0}",
    "/tmp/..{0}",
    "/.{0}/.",
    "/missing/..{0}",
    "{1}//./{2}",
    "{1}/{2}/../{2}",
    "{1}/x/../{2}",
    "/proc/self/root/{1}/./{2}/",
    "round{0}",
    "deep/../round/.{0}",
    "deep/../../{2}",
]
"""Of a session's own directory: {0} is its path, {1} the one above it, {2} its name. `round` is a link to `/`."""


@pytest.mark.parametrize("deep", ["", "a/b/"])
def test_no_link_of_a_copy_leads_to_the_original_however_it_is_spelt(settings: Settings, deep: str) -> None:
    parent, child = uuid4(), uuid4()
    made = workspaces.create(settings, parent, None)
    theirs = {"files": made.root, "home": made.home, "output": made.output, "history": made.history}
    links = []
    for part, place in theirs.items():
        (place / deep).mkdir(parents=True, exist_ok=True)
        (place / deep / "round").symlink_to("/")
        (place / deep / "deep").mkdir()
        for number, spelling in enumerate(SPELLINGS):
            for to, target in theirs.items():
                leads = spelling.format(target, target.parent, target.name)
                if leads.startswith("deep/../../"):
                    leads = "deep/../" + "../" * len(Path(deep).parts) + os.path.relpath(target, place)
                (place / deep / f"{number}-{to}").symlink_to(leads)
                links.append((part, to, f"{number}-{to}"))
    fork(settings, (parent, child), (parent, child))
    copy = workspaces.create(settings, child, None)
    ours = {"files": copy.root, "home": copy.home, "output": copy.output, "history": copy.history}
    wrong = [
        os.readlink(ours[part] / deep / name)
        for part, to, name in links
        if os.path.realpath(ours[part] / deep / name) != os.path.realpath(ours[to])
    ]
    assert wrong == []


def test_a_link_to_a_namesake_of_the_session_inside_of_a_tree_leads_there_in_the_copy(settings: Settings) -> None:
    parent, child = uuid4(), uuid4()
    root = workspaces.create(settings, parent, None).root
    (root / "logs" / str(parent)).mkdir(parents=True)
    (root / "logs" / str(parent) / "log").write_text("a line")
    (root / "logs" / "last").symlink_to(f"{parent}/log")
    (root / "last").symlink_to(f"logs/./{parent}/log")
    (root / "whole").symlink_to(root / "logs" / str(parent) / "log")
    fork(settings, (parent, child), (parent, child))
    copy = workspaces.root_of(settings, child)
    for name in ("logs/last", "last", "whole"):
        assert Path(os.path.realpath(copy / name)) == (copy / "logs" / str(parent) / "log").resolve()


def test_a_link_to_what_a_conversation_holds_leads_to_that_of_the_copy(settings: Settings) -> None:
    parent, child, before = uuid4(), uuid4(), uuid4()
    made = workspaces.create(settings, parent, None)
    told = f"{settings.workspaces_root}/.configs/{{0}}/projects/-w-{{0}}/{{1}}/subagents/agent-1.jsonl"
    (made.output / "task.output").symlink_to(told.format(parent, before))
    fork(settings, (parent, child), (before, child))
    copy = settings.workspaces_root / ".outputs" / str(child)
    assert os.readlink(copy / "task.output") == told.format(child, child)
