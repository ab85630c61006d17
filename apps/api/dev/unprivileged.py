"""How to run PostgreSQL's programs, which refuse uid 0 and a uid without a name, in a container or as root."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.api.dev.datadir import NOBODY, DataDir, DevError

UNSHARE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
"""A user namespace in which we are `nobody`, while every file that we own stays ours (util-linux 2.38)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a program of the installation.

    Attributes:
        bin: the directory with `initdb` and `postgres`.
        prefix: words before the command.
        account: the user to become, or None to stay who we are.
    """

    bin: Path
    prefix: Sequence[str] = ()
    account: pwd.struct_passwd | None = None

    def command(self, program: str, *arguments: str) -> list[str]:
        return [*self.prefix, str(self.bin / program), *arguments]

    @property
    def popen(self) -> dict[str, Any]:
        """Keyword arguments for subprocess.Popen."""
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make the account that the programs run as the owner of a file, or of a directory and what is in it."""
        user, group = (self.account.pw_uid, self.account.pw_gid) if self.account else (os.geteuid(), os.getegid())
        if path.lstat().st_uid == user:
            return
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder) / name, user, group, follow_symlinks=False)
        os.chown(path, user, group)


def launch(installation: Path, home: DataDir) -> Launch:
    """The first way that works, tried by running `initdb --version`.

    Args:
        installation: the directory that has `bin`, `lib` and `share`.
        home: the data directory, which gets a copy of the installation when only `nobody` can run it.

    Raises:
        DevError: there is none; the message says what to do instead.
    """
    direct = Launch(installation / "bin")
    if os.geteuid() != 0 and _has_name():
        return direct
    if shutil.which("unshare"):
        mapped = Launch(installation / "bin", UNSHARE)
        if _complaint(mapped) is None:
            return mapped
    if os.geteuid() != 0:
        raise DevError(
            f"PostgreSQL needs a name for uid {os.geteuid()}, and this system has no user namespaces to lend one. "
            "Add the uid to /etc/passwd, or set DATABASE_URL to a PostgreSQL server."
        )
    return _as_nobody(installation, home)


def _as_nobody(installation: Path, home: DataDir) -> Launch:
    try:
        account = pwd.getpwnam("nobody")
    except KeyError as error:
        raise DevError("PostgreSQL refuses to run as root, and this system has no user `nobody`.") from error
    copy = home.root / "postgres-programs"
    if not copy.exists():
        _copy(installation, copy)
    for path in (home.root, home.sockets):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o111)
    chosen = Launch(copy / installation.parent.name / installation.name / "bin", account=account)
    complaint = _complaint(chosen)
    if complaint is not None:
        raise DevError(
            f"PostgreSQL refuses to run as root, and `nobody` cannot run it below {home.root} ({complaint}). "
            "Start as another user, choose a --data-dir that everybody can enter, or set DATABASE_URL."
        )
    return chosen


def _copy(installation: Path, copy: Path) -> None:
    partial = copy.with_name(f"{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    package = installation.parent
    unused = shutil.ignore_patterns("include", "*.a", "pgxs", "pkgconfig")
    shutil.copytree(installation, partial / package.name / installation.name, symlinks=True, ignore=unused)
    # Shared libraries that the wheel brings along, found by their place relative to the programs.
    for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.relative_to(package.parent), symlinks=True)
    partial.chmod(0o755)
    partial.rename(copy)


def _complaint(candidate: Launch) -> str | None:
    """Why `initdb --version` does not run this way, or None."""
    try:
        done = subprocess.run(
            candidate.command("initdb", "--version"),
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            timeout=30,
            **candidate.popen,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def _has_name() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True
