"""What the agent's program says of files, as paths in a workspace."""

from __future__ import annotations

from uuid import UUID

import pytest

from apps.api.core.sessions.checkpoints import inside

ID = UUID(int=7)


@pytest.mark.parametrize(
    ("cwd", "path", "found"),
    [
        (None, "a.txt", "a.txt"),
        ("sub", "a.txt", "sub/a.txt"),
        ("sub", "../a.txt", "a.txt"),
        ("sub/deep", "x/../../b", "sub/b"),
        ("sub", f"/var/lib/elsewhere/{ID}/in/a.txt", "in/a.txt"),
        (None, f"/w/{ID}/../{ID}/a", "a"),
        (None, "../x", None),
        (None, "../../../../etc/passwd", None),
        (None, "/etc/passwd", None),
        (None, f"/w/{ID}/../../etc/passwd", None),
        (None, f"/w/{ID}", None),
        (None, ".", None),
        (None, "", None),
    ],
)
def test_a_path_of_the_agents_program_is_one_in_the_workspace_or_none(
    cwd: str | None, path: str, found: str | None
) -> None:
    assert inside(ID, cwd, path) == found
