"""References of repositories: git's own rules, both ways."""

from __future__ import annotations

import subprocess

import pytest
from pydantic import ValidationError

from apps.api.core.config.parts import Repository

REFS = [
    "main", "v1.0", "@babel/core@7.0.0", "feature/\u00fc-1", "release/2026.01", "a+b", "a=b,c", "#1",
    "a./b", "x@y", "@@", "a{b}",
    "@", "", "/a", "a/", "a//b", "a..b", "a.", ".a", "a/.b",
    "a.lock", "a.lock/b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b",
    "a@{1}", "a\tb", "a\x7f", "HEAD",
]  # fmt: skip


@pytest.mark.parametrize("ref", REFS)
def test_a_ref_is_taken_if_git_takes_it(ref: str) -> None:
    known = subprocess.run(["git", "check-ref-format", "--allow-onelevel", ref], check=False).returncode == 0
    try:
        taken = Repository.model_validate({"url": "https://github.com/a/b", "ref": ref}).ref == ref
    except ValidationError:
        taken = False
    assert taken is known


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=x", "a\0b", "\ud800", "x" * 201])
def test_what_is_no_argument_for_git_is_refused(ref: str) -> None:
    with pytest.raises(ValidationError):
        Repository.model_validate({"url": "https://github.com/a/b", "ref": ref})
