"""The data directory: where everything of the local mode lies, and the lock that lets one supervisor use it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography.fernet import Fernet

NOBODY = 65534
"""The uid of `nobody`, and the uid that root gets inside of a user namespace."""

CLEANUP_TIMEOUT = 90.0
"""Seconds to wait for the reaper of a killed supervisor: longer than all of its bounds together."""

MAX_SOCKET_PATH = 100
"""Characters. A socket's path may have 103 on macOS and 107 on Linux."""


class DevError(Exception):
    """The local mode cannot go on. The message is for the terminal: what happened and what to do."""

    exit_code = 1


class RefusedError(DevError):
    """Nothing was started: the request itself cannot be met."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class DataDir:
    """Absolute paths below one data directory.

    Attributes:
        root: the directory itself.
        sockets: where the unix sockets lie, mode 0700; below the temp directory when `root` is too long for that.
    """

    root: Path
    sockets: Path

    @classmethod
    def at(cls, path: Path) -> DataDir:
        """The layout below `path`. Creates nothing."""
        root = path.expanduser().resolve()
        sockets = root / "run"
        # Both a socket's path and the lists in which it is named (PostgreSQL's, asyncpg's) restrict it.
        longest = sockets / ".s.PGSQL.5432"
        if len(str(longest)) > MAX_SOCKET_PATH or not re.fullmatch(r"[\w./-]+", str(longest), re.ASCII):
            digest = hashlib.sha256(str(sockets).encode()).hexdigest()[:12]
            sockets = Path("/tmp") / f"claude-agent-api-{os.geteuid()}-{digest}"  # noqa: S108 - its owner is checked
        return cls(root, sockets)

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def api_key(self) -> Path:
        return self.root / "api-key"

    @property
    def instances(self) -> Path:
        return self.root / "instances.json"

    @property
    def workspaces(self) -> Path:
        return self.root / "workspaces"

    def password(self) -> str:
        """The password with which the API servers come to both embedded servers.

        An agent's tools run as the same user and can reach the sockets; this file they cannot read where the
        kernel isolates them.
        """
        return self._password("server-password")

    def owner_password(self) -> str:
        """The password of the database's owner, for the supervisor and the commands."""
        return self._password("database-password")

    def _password(self, name: str) -> str:
        path = self.root / name
        if not path.exists():
            write_secret(path, secrets.token_urlsafe(32))
        return path.read_text().strip()

    def encryption_key(self) -> str:
        """The key that secrets of tenants are encrypted with, made once: with another one they cannot be read."""
        if not self._encryption_key.exists():
            write_secret(self._encryption_key, Fernet.generate_key().decode())
        return self._encryption_key.read_text().strip()

    def known_encryption_key(self) -> str | None:
        """The same, if it has been made."""
        return self.encryption_key() if self._encryption_key.exists() else None

    @property
    def _encryption_key(self) -> Path:
        return self.root / "encryption-key"

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Make the directory and use it alone. Yields the descriptor of the lock, which a reaper inherits.

        Raises:
            RefusedError: another supervisor holds it, and the message names its pid; or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(error) from error
        try:
            self._wait_for_lock(descriptor)
            self._create_folders()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _create_folders(self) -> None:
        # Each of these protects itself: the directory above may have been there before us, with a mode of its own.
        try:
            for path in (self.logs, self.sockets):
                path.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unwritable(error) from error
        found = self.sockets.lstat()
        owners = {os.geteuid(), NOBODY} if os.geteuid() == 0 else {os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            raise RefusedError(f"{self.sockets} belongs to somebody else. Remove it or choose another --data-dir.")
        self.sockets.chmod(0o700)

    def _wait_for_lock(self, descriptor: int) -> None:
        started, announced = time.monotonic(), False
        while not _try_lock(descriptor):
            holder = _holder(descriptor)
            waited = time.monotonic() - started
            if (holder is not None and _runs(holder)) or waited > CLEANUP_TIMEOUT:
                raise RefusedError(f"{self.root} is in use by process {holder}. Stop it, or choose another --data-dir.")
            if not announced and waited > 0.5:
                announced = True
                print("The last run was killed: waiting for its leftovers to end ...", file=sys.stderr, flush=True)
            time.sleep(0.05)


def write_secret(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner can read it, from its first moment on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    temporary.replace(path)


def _unwritable(error: OSError) -> RefusedError:
    return RefusedError(f"cannot write {error.filename}: {error.strerror}. Choose another --data-dir.")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _runs(pid: int) -> bool:
    """A killed supervisor leaves the lock to its reaper; a zombie is as dead as can be."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
