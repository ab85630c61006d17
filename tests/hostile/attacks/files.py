"""Files that are not the agent's: of other sessions, of the server, of the machine."""

from __future__ import annotations

import ctypes
import errno
import glob
import mmap
import os
import shutil
import stat
import subprocess
import uuid
from functools import partial
from pathlib import Path

from .calls import call
from .table import Facts, Held, add, attack

AT_FDCWD, RENAME_EXCHANGE = -100, 2
IN_ACCESS = 1


def read(path: str | Path) -> str:
    with open(path, "rb") as file:
        return file.read(200).decode(errors="replace")


def made(path: Path) -> str:
    """Make a file there. Whether it is there for others, too, they see who then remove it: `test_attacks.told`."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return f"made {path}"


def new(name: str = "") -> Path:
    """A path of one's own, of nothing yet."""
    return Path.cwd() / f"{name}{uuid.uuid4().hex[:8]}"


PLACES = ("workspace", "home", "output", "checkpoints", "config", "tmp", "given")


def _reads(place: str, facts: Facts) -> object:
    return read(Path(facts["victim"][place]) / "private.txt")


def _makes(place: str, facts: Facts) -> object:
    return made(Path(facts["victim"][place]) / uuid.uuid4().hex)


for _place in PLACES:
    add(f"read in the {_place} of another session", partial(_reads, _place), "files", "namespaces")
    add(f"write in the {_place} of another session", partial(_makes, _place), "files", "namespaces")


@attack("list all workspaces", "files", "namespaces")
def _(facts: Facts) -> object:
    return Path(facts["victim"]["workspace"]).name in os.listdir(Path(facts["victim"]["workspace"]).parent)


@attack("list the homes of all sessions", "files", "namespaces")
def _(facts: Facts) -> object:
    return Path(facts["victim"]["home"]).name in os.listdir(Path(facts["victim"]["home"]).parent)


@attack("list the shared temporary directory", "files", "namespaces")
def _(facts: Facts) -> object:
    return Path(facts["host"]["file"]).name in os.listdir(Path(facts["host"]["file"]).parent)


@attack("read a file of another session by a symbolic link", "files", "namespaces")
def _(facts: Facts) -> object:
    link = new("link-")
    link.symlink_to(Path(facts["victim"]["workspace"]) / "private.txt")
    return read(link)


@attack("read a file of another session by a link to its directory", "files", "namespaces")
def _(facts: Facts) -> object:
    link = new("link-")
    link.symlink_to(facts["victim"]["workspace"])
    return read(link / "private.txt")


@attack("read a file of another session by a hard link", "files", "namespaces")
def _(facts: Facts) -> object:
    link = new("hard-")
    os.link(Path(facts["victim"]["workspace"]) / "private.txt", link)
    return read(link)


@attack("read a file of another session by the parent of an open directory", "files", "namespaces")
def _(facts: Facts) -> object:
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    above = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=here)
    name = f"{Path(facts['victim']['workspace']).name}/private.txt"
    return os.read(os.open(name, os.O_RDONLY, dir_fd=above), 200)


@attack("read a file of another session by opening its path again", "files", "namespaces")
def _(facts: Facts) -> object:
    known = os.open(Path(facts["victim"]["workspace"]) / "private.txt", os.O_PATH)
    return read(f"/proc/self/fd/{known}")


@attack("read a file of another session by the root of a process", "files", "namespaces")
def _(facts: Facts) -> object:
    return read(f"/proc/{os.getpid()}/root{facts['victim']['workspace']}/private.txt")


@attack("move a file of another session here", "files", "namespaces")
def _(facts: Facts) -> object:
    theirs, here = Path(facts["victim"]["workspace"]) / "movable.txt", new("moved-")
    os.rename(theirs, here)
    os.rename(here, theirs)
    return "moved"


@attack("exchange a file of another session for one of one's own", "files", "namespaces")
def _(facts: Facts) -> object:
    theirs, here = Path(facts["victim"]["workspace"]) / "movable.txt", new("mine-")
    here.write_text("forged")
    for _ in range(2):  # and back
        call("renameat2", AT_FDCWD, os.fsencode(theirs), AT_FDCWD, os.fsencode(here), RENAME_EXCHANGE)
    return "exchanged"


@attack("write to a file of another session", "files", "namespaces")
def _(facts: Facts) -> object:
    os.close(os.open(Path(facts["victim"]["workspace"]) / "private.txt", os.O_WRONLY))
    return "opened for writing"


@attack("empty a file of another session", "files", "namespaces")
def _(facts: Facts) -> object:
    theirs = Path(facts["victim"]["workspace"]) / "movable.txt"
    os.truncate(theirs, os.stat(theirs).st_size)
    return "truncated"


@attack("remove a directory of another session", "files", "namespaces")
def _(facts: Facts) -> object:
    theirs = Path(facts["victim"]["workspace"]) / "empty"
    os.rmdir(theirs)
    os.mkdir(theirs)
    return "removed"


@attack("run a program of another session", "files", "namespaces")
def _(facts: Facts) -> object:
    return subprocess.check_output([Path(facts["victim"]["workspace"]) / "program"], text=True)


@attack("map a file of another session into memory", "files", "namespaces")
def _(facts: Facts) -> object:
    with open(Path(facts["victim"]["workspace"]) / "private.txt", "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[:100]


# --- what can be done to a file without opening it ------------------------------------------------------------------


@attack("see whether a file of another session is there", "namespaces")
def _(facts: Facts) -> object:
    return os.stat(Path(facts["victim"]["workspace"]) / "private.txt").st_size


@attack("change the mode of a file of another session", "namespaces")
def _(facts: Facts) -> object:
    path = Path(facts["victim"]["workspace"]) / "movable.txt"
    os.chmod(path, 0o640)
    return oct(os.stat(path).st_mode)


@attack("change the owner of a file of another session", "namespaces")
def _(facts: Facts) -> object:
    path = Path(facts["victim"]["workspace"]) / "movable.txt"
    os.chown(path, -1, os.getegid())
    return "changed to the group that it had"


@attack("change the times of a file of another session", "namespaces")
def _(facts: Facts) -> object:
    path = Path(facts["victim"]["workspace"]) / "movable.txt"
    os.utime(path, (1, 1))
    return os.stat(path).st_mtime


@attack("put an attribute on a file of another session", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    path = os.fsencode(Path(facts["victim"]["workspace"]) / "movable.txt")
    call("setxattr", path, b"user.hostile", b"x", 1, 0)
    return "put"


@attack("watch what another session does with its files", "namespaces")
def _(facts: Facts) -> object:
    watching = call("inotify_init1", 0)
    return call("inotify_add_watch", watching, os.fsencode(facts["victim"]["workspace"]), IN_ACCESS)


@attack("change the mode of a file of the machine's user", "namespaces")
def _(facts: Facts) -> object:
    os.chmod(facts["host"]["file"], 0o600)
    return "changed"


# --- the server's ----------------------------------------------------------------------------------------------------


@attack("read the server's key on disk", "files", "namespaces")
def _(facts: Facts) -> object:
    return read(facts["server"]["key"])


@attack("read what a file of the server's user says", "files", "namespaces")
def _(facts: Facts) -> object:
    return read(facts["host"]["file"])


@attack("change the program that starts every agent", "files", "namespaces")
def _(facts: Facts) -> object:
    os.close(os.open(facts["server"]["launcher"], os.O_WRONLY | os.O_APPEND))
    return "opened for writing"


@attack("replace the program that starts every agent", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["server"]["launcher"]).parent / uuid.uuid4().hex)


@attack("lengthen the server's lease", "files", "namespaces")
def _(facts: Facts) -> object:
    os.close(os.open(facts["server"]["lease"], os.O_WRONLY))
    return "opened for writing"


@attack("change what the server gave to the agent to read", "files", "namespaces")
def _(facts: Facts) -> object:
    os.close(os.open(Path(facts["own"]["given"]) / "permissions.json", os.O_WRONLY))
    return "opened for writing"


@attack("put endpoints and credentials where the agent's program looks for them", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["own"]["given"]) / uuid.uuid4().hex)


@attack("change the agent's program", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["server"]["cli"]).parent / uuid.uuid4().hex)


@attack("put a module where the server's Python loads it", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["server"]["modules"]) / f"{uuid.uuid4().hex}.txt")


@attack("change the server's own code", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["server"]["code"]) / f"{uuid.uuid4().hex}.txt")


# --- the machine's ---------------------------------------------------------------------------------------------------


def _made_in(directory: str, facts: Facts) -> object:
    return made(Path(directory) / f"hostile-{uuid.uuid4().hex}")


for _directory in ("/etc", "/usr/bin", "/etc/cron.d", "/var/tmp", "/var/spool", "/run", "/root", "/opt"):
    # A machine may have no such directory, or have it read-only.
    add(f"write in {_directory}", partial(_made_in, _directory), "files", "namespaces", by_kernel=True)


@attack("leave a command for the user's next shell", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(facts["host"]["home"]) / f".bashrc-{uuid.uuid4().hex}")


@attack("make a device of one's own, the disk", "files", "capabilities", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    path = new("device-")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(253, 0))
    path.unlink()
    return "made"


@attack("read the disk itself", "files", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    for device in ("/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/mem", "/dev/kmsg"):
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
        return device
    raise Held("no such device")


def _open_to_write(path: str, facts: Facts) -> object:
    found = glob.glob(path)
    if not found:
        raise FileNotFoundError(errno.ENOENT, path)
    os.close(os.open(found[0], os.O_WRONLY))
    return f"opened {found[0]} for writing"


for _what, _path in {
    "have the kernel run a program at the next crash": "/proc/sys/kernel/core_pattern",
    "have the kernel run a program for a module": "/proc/sys/kernel/modprobe",
    "restart the machine by a file": "/proc/sysrq-trigger",
    "leave the control group": "/sys/fs/cgroup/*/cgroup.procs",
    "change how memory is managed": "/sys/kernel/mm/transparent_hugepage/enabled",
}.items():
    add(_what, partial(_open_to_write, _path), "files", "namespaces", by_kernel=True)


@attack("read the kernel's memory by a file", "files", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    return os.read(os.open("/proc/kcore", os.O_RDONLY), 4)


@attack("become another user by a setuid program of one's own", "files", "calls", "namespaces", by_kernel=True)
def _(facts: Facts) -> object:
    """Of another user than one's own: for root one that is less, which shows as well whether the bit means anything."""
    path = new("setuid-")
    shutil.copy(shutil.which("id") or "/usr/bin/id", path)
    os.chown(path, 65533, -1)
    os.chmod(path, 0o4755)
    return "65533" in subprocess.check_output([path, "-u"], text=True)


@attack("list what all sessions have in shared memory", "files", "namespaces")
def _(facts: Facts) -> object:
    return facts["host"]["shm"] in os.listdir("/dev/shm")


@attack("read shared memory of another session whose name is known", "namespaces")
def _(facts: Facts) -> object:
    return read(f"/dev/shm/{facts['victim']['shm']}")


@attack("leave a file that outlives the session in shared memory", "namespaces")
def _(facts: Facts) -> object:
    return made(Path(f"/dev/shm/hostile-{uuid.uuid4().hex}"))


@attack("leave a file in the directory that all users share", "files", "namespaces")
def _(facts: Facts) -> object:
    return made(Path("/tmp") / f"hostile-{uuid.uuid4().hex}")


@attack("read System V memory of another session", "namespaces")
def _(facts: Facts) -> object:
    return _shared(facts["victim"]["sysv"])


@attack("read System V memory of the machine", "namespaces")
def _(facts: Facts) -> object:
    return _shared(facts["host"]["sysv"])


def _shared(number: int) -> str:
    address = call("shmat", number, 0, 0)
    return ctypes.string_at(address, 32).decode()
