"""Resources: what a workspace is given before an agent goes to work in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from pydantic import AfterValidator, Field

from apps.api.core.config.names import STORED, Part, confined
from apps.api.core.config.parts import Repository, Url

MAX_RESOURCES = 50
"""Of one session, and of one prompt."""


def _file_id(value: str) -> str:
    try:
        return str(UUID(value))
    except ValueError as error:
        raise ValueError("is no id of a file") from error


def _inside(value: str) -> str:
    if (path := confined(value)) == ".":
        raise ValueError("must be the path of a file or directory inside the workspace")
    return path


FileId = Annotated[str, Field(max_length=40), AfterValidator(_file_id)]
TargetPath = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_inside)]


class Resource(Part):
    """One of them: a file that the tenant has uploaded, what a URL answers, or a git repository. `path`: where it goes;
    if left out, its own name."""

    file_id: FileId | None = None
    url: Url | None = None
    repository: Repository | None = None
    path: TargetPath | None = None

    def model_post_init(self, _context: object) -> None:
        given = [name for name in ("file_id", "url", "repository") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("needs one of file_id, url and repository, and no more")
        if self.path is None and not self.file_id and not self.own_name:
            raise ValueError("needs a path: its URL ends with no name")

    @classmethod
    def stored(cls, data: Mapping[str, Any]) -> Resource:
        """What was stored. Raises ValueError for what no release has stored."""
        return cls.model_validate(data, context=STORED)

    def given(self) -> dict[str, Any]:
        """Only what was set, JSON-safe: the form that is stored."""
        return self.model_dump(exclude_none=True)

    @property
    def own_name(self) -> str | None:
        """What its URL ends with, if that can be the name of a file."""
        url = self.repository.url if self.repository is not None else self.url or ""
        name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
        name = name.removesuffix(".git") if self.repository is not None else name
        try:
            return name if name and PurePosixPath(_inside(name)).name == name else None
        except ValueError:
            return None


Resources = Annotated[list[Resource], Field(max_length=MAX_RESOURCES)]
