"""What a session's workspace is given before an agent goes to work in it: its repository, and resources.

All of what is given at one time is put together aside, and comes into the workspace when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import UUID, uuid4

from apps.api.core.config.parts import Repository
from apps.api.core.config.resources import Resource
from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.files import trees
from apps.api.core.files.objects import StoreFailed
from apps.api.core.files.snapshots import TooLarge
from apps.api.core.fleet.claims import Claim
from apps.api.core.network import outbound
from apps.api.core.sessions import workspaces
from apps.api.core.tenant import disk, repositories, uploads
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import ApiError, LeaseLost
from apps.api.runner.agent.clone import CLONE_SECONDS, CloneFailed, Git
from apps.api.runner.session.storing import Storing

DOWNLOAD_SECONDS = 120.0
"""For what one URL answers."""


class NotProvided(Exception):
    """The workspace has not got what it was to be given. Its message is for the client, and holds no secret.

    Attributes:
        code: the failure of the run.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Provisions:
    """What one session's workspace is given on this instance."""

    def __init__(self, core: Core, writer: Writer, storing: Storing) -> None:
        self._core, self._writer, self._storing = core, writer, storing
        self._tenant_id, self._session_id = writer.tenant_id, writer.session_id
        self._threads = core.blocking.starts

    async def begin(self, claim: Claim, *, is_new: bool) -> None:
        """Give an empty workspace the session's repository; and its resources, where no agent has been at work yet.

        Raises NotProvided, LeaseLost, Unavailable.
        """
        if claim.config.repository is not None:
            await self._begin_with(claim.config.repository, claim)
        if is_new:
            await self._bring(claim.config.resources or (), claim.run_id)

    async def add(self, claim: Claim) -> None:
        """Give the workspace what the prompt brings. Raises NotProvided, LeaseLost, Unavailable."""
        if claim.expand_prompt:
            self._storing.may_change()  # a slash command may run a program without calling a tool
        if not claim.parked:  # else it came before that
            await self._bring(claim.resources, claim.run_id)

    async def _begin_with(self, repository: Repository, claim: Claim) -> None:
        settings, session_id = self._core.settings, self._session_id
        draft = await self._threads.run(workspaces.draft, settings, session_id, claim.generation)
        if draft is None:
            return
        try:
            with _failing("repository_failed", "The repository was not cloned"):
                cloned = await self._clone(repository, draft, claim.run_id)
                await self._threads.run(workspaces.publish, settings, session_id, draft / "files")
            self._storing.will_change()
            await self._writer.append(cloned)
        finally:
            await self._threads.run(workspaces.put_away, settings, draft)

    async def _bring(self, resources: Sequence[Resource], run_id: UUID) -> None:
        """Put resources into the workspace, and store it: they come once only, whatever becomes of the run."""
        if not resources:
            return
        draft = self._core.settings.workspaces_root / workspaces.UPLOADS / uuid4().hex
        root, paths = draft / "files", list[str]()
        await self._threads.run(trees.make_directory, root)
        await self._writer.append(Event("status", {"status": "providing", "resources": len(resources)}, run_id))
        try:
            budget = trees.Budget(await self._room())
            for number, resource in enumerate(resources):
                with _failing("resource_failed", f"resources.{number} was not brought"):
                    paths.append(await self._add(resource, draft / str(number), root, budget, run_id))
            with _failing("resource_failed", "The resources do not fit into the workspace"):
                await (await self._storing.tree()).merge(root)
        finally:
            await self._threads.run(workspaces.put_away, self._core.settings, draft)
        await self._writer.append(Event("status", {"status": "provided", "paths": paths}, run_id))

    async def _room(self) -> int:
        room, most = await disk.room(self._core.db, self._session_id), self._core.settings.workspace_max_bytes
        return most if room is None else max(min(room, most), 0)

    async def _clone(self, repository: Repository, draft: Path, run_id: UUID) -> Event:
        """Clone into `files` in this directory, and tell it. Returns what is told once the clone is where it goes."""
        core, told = self._core, {"repository": repository.url, "ref": repository.ref}
        await self._writer.append(Event("status", {"status": "cloning", **told}, run_id))
        async with core.outbound.calls.one("clone", self._tenant_id, CLONE_SECONDS):
            source = await repositories.resolve(core, self._tenant_id, repository)
            commit = await Git(source, draft, CLONE_SECONDS, core.settings.max_repository_bytes).clone()
        return Event("status", {"status": "cloned", **told, "commit": commit}, run_id)

    async def _add(self, resource: Resource, draft: Path, root: Path, budget: trees.Budget, run_id: UUID) -> str:
        """Put one into a directory. Returns its path there. `draft`: where it is put together, which is not there."""
        if resource.repository is None:
            return await self._add_file(resource, draft, root, budget)
        path = resource.path or resource.own_name or ""
        await self._threads.run(trees.make_directory, draft)
        cloned = await self._clone(resource.repository, draft, run_id)
        budget.spend(await self._threads.run(trees.size, draft / "files"))
        await self._threads.run(_put, draft / "files", root, path)
        await self._writer.append(cloned)
        return path

    async def _add_file(self, resource: Resource, draft: Path, root: Path, budget: trees.Budget) -> str:
        core = self._core
        with await self._threads.run(draft.open, "xb") as made:

            async def write(some: bytes) -> None:
                budget.spend(len(some))
                await self._threads.run(made.write, some)

            if resource.file_id is not None:
                upload = await uploads.find(core.db.pool, self._tenant_id, UUID(resource.file_id))
                path = resource.path or upload.name
                async for some in uploads.read(core, self._tenant_id, upload, 0, upload.size):
                    await write(some)
            else:
                path, most = resource.path or resource.own_name or "", core.settings.max_file_bytes
                await core.outbound.download(resource.url or "", DOWNLOAD_SECONDS, most, self._tenant_id, write)
        await self._threads.run(_put, draft, root, path)
        return path


def _put(made: Path, root: Path, path: str) -> None:
    """Move a file or directory of the server's own to a path below `root`. Blocks. Raises OSError."""
    with trees.closing_descriptor(trees.place(root, PurePosixPath(path))) as above:
        os.chmod(made, 0o755 if made.is_dir() else 0o644)
        os.rename(made, PurePosixPath(path).name, dst_dir_fd=above)


@contextmanager
def _failing(code: str, what: str) -> Iterator[None]:
    """What goes wrong in this block, as the failure of a run."""
    try:
        yield
    except CONNECTION_ERRORS:
        raise
    except LeaseLost:
        raise
    except CloneFailed as error:
        raise NotProvided(code, str(error)) from error
    except (outbound.Refused, outbound.Failed) as error:
        raise NotProvided(code, f"{what}: {error}.") from error
    except ApiError as error:
        raise NotProvided(code, f"{what}: {error.message}") from error
    except trees.TooMuch as error:
        raise NotProvided(code, f"{what}: it is too much for the workspace, or too deep.") from error
    except TooLarge as error:
        raise NotProvided(code, f"{what}: {error}") from error
    except StoreFailed as error:
        raise NotProvided(code, f"{what}: the store of files does not answer.") from error
    except OSError as error:
        raise NotProvided(code, f"{what}: no room for it, or something is in its way ({error.strerror}).") from error
