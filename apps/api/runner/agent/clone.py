"""Cloning a repository for a session's workspace.

The server runs git for it, with nothing of its own: no configuration, no credential but the tenant's for this host, no
addresses but those that were checked, no redirects, no hooks, no submodules, no filters; and within bounds of time and
size.

Sources: git-config(1), git-clone(1), git(1), gitcredentials(7).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from apps.api.core.files import removal, trees
from apps.api.core.tenant.repositories import Source

CLONE_SECONDS = 120.0
LOOK_SECONDS = 0.25
"""Between two looks at how large the clone is."""

# Printed by the shell, not an argument: every user of the host can read those. Git asks only when the host does.
_HELPER = '!f() { test "$1" = get && printf \'username=%s\\npassword=%s\\n\' "$CLONE_USER" "$CLONE_PASSWORD"; }; f'

_OPTIONS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "fetch.uriProtocols": "",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
    "http.proxy": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
}


class CloneFailed(Exception):
    """There is no clone. Its message is for the client, and holds no secret."""


class Git:
    """Git, at work in a directory of one clone. `files`: what it has cloned."""

    def __init__(self, source: Source, draft: Path, seconds: float, max_bytes: int) -> None:
        self._source, self._draft, self._max_bytes = source, draft, max_bytes
        self._seconds, self._deadline = seconds, asyncio.get_running_loop().time() + seconds
        self.files = draft / "files"

    async def clone(self) -> str | None:
        """Clone; returns the commit, None of a repository without one. Raises CloneFailed."""
        source = self._source
        which = ["--branch", source.ref] if source.ref else []
        options = ["--quiet", "--depth=1", "--single-branch", "--no-tags", "--no-recurse-submodules", "--template="]
        status, said = await self._run(["clone", *options, *which, "--", source.url, str(self.files)])
        if status != 0 and "error: 30" in said and not source.url.endswith(".git"):
            # Some hosts redirect to the name with this ending; where else a redirect leads is nobody's to say.
            await asyncio.to_thread(removal.remove, self.files)
            url = f"{source.url.rstrip('/')}.git"
            status, said = await self._run(["clone", *options, *which, "--", url, str(self.files)])
        if status != 0:
            raise CloneFailed(f"The repository was not cloned: {_reason(said)}")
        await asyncio.to_thread(_cut_links, self.files)
        status, said = await self._run(["-C", str(self.files), "rev-parse", "HEAD"])
        return said.strip() if status == 0 else None

    def _environment(self) -> dict[str, str]:
        source = self._source
        options = dict(_OPTIONS)
        # A host that asks for a name again could be told another address.
        addresses = ",".join(f"[{address}]" if ":" in address else address for address in source.addresses)
        options["http.curloptResolve"] = f"{source.host}:{source.port}:{addresses}"
        scheme = source.url.partition(":")[0]
        options[f"protocol.{scheme}.allow"] = "always"
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._draft),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_ALLOW_PROTOCOL": scheme,
        }
        if certificates := os.environ.get("SSL_CERT_FILE"):
            env["GIT_SSL_CAINFO"] = certificates
        if source.credential is not None:
            options["credential.helper"] = _HELPER
            env["CLONE_USER"], env["CLONE_PASSWORD"] = source.credential
        for number, (name, value) in enumerate(options.items()):
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = name, value
        return env | {"GIT_CONFIG_COUNT": str(len(options))}

    async def _run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run git within the bounds; returns its exit status and the end of what it said, without the credential."""
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                *arguments,
                env=self._environment(),
                cwd=self._draft,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise CloneFailed("The server has no git: its operator must install it.") from error
        self._bound(process)
        saying = asyncio.create_task(_tail(process), name="git-output")
        try:
            while not (await asyncio.wait({saying}, timeout=LOOK_SECONDS))[0]:
                await self._look()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            said = await saying
            await process.wait()
        await self._look()
        if self._source.credential is not None:
            said = said.replace(self._source.credential[1], "***")
        return process.returncode or 0, said

    def _bound(self, process: Process) -> None:
        # One file can grow faster than anybody looks. What git starts inherits this.
        if hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (self._max_bytes, self._max_bytes))

    async def _look(self) -> None:
        if asyncio.get_running_loop().time() > self._deadline:
            raise CloneFailed(f"The repository was not cloned: it took longer than {self._seconds:.0f} s.")
        if await asyncio.to_thread(trees.size, self._draft) > self._max_bytes:
            raise CloneFailed(
                f"The repository was not cloned: it is larger than {self._max_bytes} bytes (MAX_REPOSITORY_BYTES)."
            )


async def _tail(process: Process) -> str:
    assert process.stdout is not None  # noqa: S101 - for the type checker
    tail = b""
    while chunk := await process.stdout.read(65_536):
        tail = (tail + chunk)[-4000:]
    return tail.decode(errors="replace")


def _reason(said: str) -> str:
    if "could not read Username" in said:
        return "the host asks for credentials: store them as the secret GIT_TOKEN."
    lines = [line for line in said.splitlines() if line.startswith(("fatal:", "error:"))]
    return (lines[-1].partition(": ")[2] if lines else "git failed")[:300].rstrip(".") + "."


def _cut_links(root: Path) -> None:
    """Remove symbolic links that lead out of a clone: what reads it for others would follow them."""
    with closing(trees.walk(root)) as found:
        for entry in found:
            if stat.S_ISLNK(entry.info.st_mode):
                leads = os.readlink(entry.name, dir_fd=entry.directory)
                if not trees.stays_below(leads, entry.path.count("/")):
                    os.unlink(entry.name, dir_fd=entry.directory)
