"""Who may import whom, and how long things may be. The rules and their reasons are in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
APPS = ROOT / "apps"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

LONGER_WITH_A_REASON: dict[str, tuple[int, str]] = {}
"""module: (lines, reason). Take a module out of here once it is short enough."""

# A room is a package of apps/api, or a module beside them. `entry` rooms may import everything but `dev`.
FOUNDATION = {"clock", "codes", "settings", "errors"}
OBSERVED = {*FOUNDATION, "instruments", "tracing"}
MAY_IMPORT = {
    "machine": set(),
    "clock": set(),
    "codes": set(),
    "addresses": set(),
    "secret_files": set(),
    "settings": {"machine", "secret_files"},
    "spelling": {"settings", "secret_files"},
    "errors": {"codes"},
    "instruments": {"errors"},
    "tracing": {"clock"},
    "spans": {"clock", "tracing"},
    "models": set(),
    "logs": {"settings", "tracing"},
    "lanes": {"errors"},
    "threads": {"machine"},
    "pool": {"lanes"},
    "db": {*FOUNDATION, "lanes", "pool"},
    "reads": set(),
    "redis": {"settings", "reads"},
    "invalidations": {"db", "redis"},
    "audit": {"db"},
    "auth": {*FOUNDATION, "addresses", "core", "lanes", "db", "redis", "invalidations"},
    "keys": {*FOUNDATION, "core", "db", "redis", "auth", "audit"},
    "limits": {*FOUNDATION, "addresses", "auth", "core", "redis"},
    "shares": {*FOUNDATION},
    "core": {*OBSERVED, "models", "db", "redis", "invalidations", "threads", "audit"},
    "runner": {*OBSERVED, "core", "db", "redis", "invalidations", "machine"},
    "web": {
        *FOUNDATION,
        "instruments",
        "tracing",
        "addresses",
        "core",
        "auth",
        "audit",
        "limits",
        "shares",
        "db",
        "redis",
    },
    "dialects": {"addresses", "clock", "codes", "errors", "core", "auth", "audit", "keys", "limits", "web"},
    "measure": {*FOUNDATION, "instruments", "core", "runner", "web", "db"},
    "transfer": {*FOUNDATION, "core", "db", "threads"},
    "roles": {*FOUNDATION, "models"},
    "migrate": {*FOUNDATION, "db", "pool", "roles"},
    "doctor": {
        *FOUNDATION,
        "secret_files",
        "core",
        "db",
        "pool",
        "redis",
        "machine",
        "migrate",
        "roles",
        "runner",
        "shares",
        "spelling",
    },
    "connections": set(),
    "server": {"settings", "shares", "connections"},
    "dev": {*FOUNDATION, "db", "redis", "auth", "keys", "migrate", "spelling"},
    "openapi": {"main", "settings", "web"},
}
ENTRIES = {"main", "cli"}

WHY = {
    "core": "the domain knows no HTTP, no runner and no SDK, so that every surface can use it",
    "runner": "the runner meets HTTP only through PostgreSQL and Redis, so that it can live in another process",
    "dialects": "a dialect translates between HTTP and the core, and owns no storage",
    "web": "shared plumbing of the dialects must know none of them",
}

ORDER = {
    "core": (
        {"codec", "pages", "lease", "tasks", "network"},
        {"config", "files"},
        {"events"},
        {"context"},
        {"tenant"},
        {"sessions"},
        {"fleet"},
    ),
    "runner": (
        {"guard"},
        {"gateway", "egress"},
        {"agent"},
        {"host"},
        {"session", "heartbeat"},
        {"ahead", "removal", "wakes"},
        {"worker"},
        {"upkeep"},
    ),
    "dialects": ({"ag_ui", "ai_sdk", "compat", "managed", "mcp", "native", "openai"},),
}
"""Rooms within rooms, the lowest first: each may import what is below it, never what is above."""

MAX_ENTRIES = 12
"""Files and folders at the top of core: more than a reader takes in at one look want a room of their own."""

FORBIDDEN_IN_DIALECTS = {"sqlalchemy", "redis", "asyncpg", "claude_agent_sdk"}

STATEMENT = re.compile(r"\b(SELECT .+ FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM) ", re.DOTALL)

# Started with -I -S, before anything else exists: every import is time until an agent starts, or may be missing.
STANDARD_LIBRARY_ONLY = ("apps.api.runner.guard.program", "apps.api.dev.reaper")


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        """`core` for apps.api.core.codec, `main` for apps.api.main, and `api` for apps/api/__init__.py."""
        parts = self.name.split(".")
        return parts[2] if len(parts) > 2 else parts[-1]

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and full name of everything imported, at the top or inside of a function."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    yield node.lineno, name if name in module_names() else base

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])


def _name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def module_names() -> frozenset[str]:
    return frozenset(_name(path) for path in APPS.rglob("*.py"))


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(APPS.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(_name(path), path, ast.parse(text), len(text.splitlines())))
    return tuple(found)


def api_modules() -> list[Module]:
    return [m for m in modules() if m.name.startswith("apps.api")]


def room_of(name: str) -> str | None:
    """The room of an imported name of ours; None for other people's, and for apps.api itself (the version)."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["apps", "api"] and len(parts) > 2 else None


def violations() -> Iterator[str]:
    for module in api_modules():
        if module.room == "api":
            continue
        for line, name in module.imports():
            room = room_of(name)
            if room is None or room == module.room:
                continue
            if module.room in ENTRIES:
                allowed = room != "dev" or module.room == "cli"
            else:
                allowed = room in MAY_IMPORT[module.room]
            if not allowed:
                reason = WHY.get(module.room, "see MAY_IMPORT in this file")
                yield f"{module.path.relative_to(ROOT)}:{line}: {module.room} must not import {name}: {reason}"


def test_every_room_has_a_rule() -> None:
    rooms = {m.room for m in api_modules()} - {"api"}
    assert rooms <= set(MAY_IMPORT) | ENTRIES, "say in MAY_IMPORT what the new room may import"


def test_rooms_import_only_what_they_may() -> None:
    assert not list(violations()), "\n".join(violations())


def inner_room(name: str) -> tuple[str, str] | None:
    """("core", "events") for apps.api.core.events.log; None for what is in no room with an order."""
    parts = name.split(".")
    return (parts[2], parts[3]) if len(parts) > 3 and parts[1] == "api" and parts[2] in ORDER else None


def test_every_inner_room_has_its_place() -> None:
    found = {room for module in api_modules() if (room := inner_room(module.name))}
    assert found == {(outer, room) for outer, levels in ORDER.items() for level in levels for room in level}


def test_inner_rooms_import_only_what_is_below_them() -> None:
    level = {(outer, room): at for outer, levels in ORDER.items() for at, rooms in enumerate(levels) for room in rooms}
    for module in api_modules():
        own = inner_room(module.name)
        for line, name in module.imports():
            other = inner_room(name)
            if own and other and own[0] == other[0]:
                assert level[other] <= level[own], f"{module.path}:{line}: {own[1]} is below {other[1]}, see ORDER"


def circles() -> list[list[str]]:
    """Groups of modules that import each other, in whatever roundabout way, under TYPE_CHECKING and in functions."""
    imports = {m.name: {name for _, name in m.imports() if name in module_names()} for m in modules()}
    while True:  # what imports nothing that is left is in no circle, and neither is what nothing imports
        free = {name for name, wanted in imports.items() if not wanted & imports.keys()}
        free |= imports.keys() - set().union(*imports.values())
        if not free:
            return [[name, *sorted(wanted & imports.keys())] for name, wanted in sorted(imports.items())]
        imports = {name: wanted for name, wanted in imports.items() if name not in free}


def test_no_circle_of_imports() -> None:
    assert not circles(), "each of these imports one of the others that imports it:\n" + "\n".join(map(str, circles()))


def test_the_top_of_core_fits_one_look() -> None:
    entries = [e.name for e in (APPS / "api" / "core").iterdir() if e.name not in ("__init__.py", "__pycache__")]
    assert len(entries) <= MAX_ENTRIES, sorted(entries)


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    for module in modules():
        own = module.name.rpartition(".")[2]
        assert own not in sys.stdlib_module_names, (
            f"{module.path}: whoever reads `import {own}` thinks of the other one"
        )


def test_dialects_do_not_import_each_other() -> None:
    for module in api_modules():
        if module.room != "dialects":
            continue
        own = ".".join(module.name.split(".")[:4])
        for line, name in module.imports():
            foreign = name.startswith("apps.api.dialects") and not f"{name}.".startswith(f"{own}.")
            assert not foreign, f"{module.path}:{line}: what two dialects share belongs into web or core"


def test_dialects_know_neither_storage_nor_the_sdk() -> None:
    for module in api_modules():
        if module.room == "dialects":
            for line, name in module.imports():
                assert name.split(".")[0] not in FORBIDDEN_IN_DIALECTS, (
                    f"{module.path}:{line}: {name}: {WHY['dialects']}"
                )


def test_tables_are_the_cores() -> None:
    """Whoever asks what writes a table finds it in one room; web asks only whether the database answers."""
    for module in api_modules():
        if module.room not in ("runner", "web", "dialects"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not STATEMENT.search(node.value), f"{module.path}:{node.lineno}: SQL belongs into core"


def test_only_the_runner_imports_the_sdk() -> None:
    for module in modules():
        if module.room != "runner":
            for line, name in module.imports():
                assert name.split(".")[0] != "claude_agent_sdk", (
                    f"{module.path}:{line}: ask the runner for what you need"
                )


def test_only_the_command_line_enters_dev() -> None:
    for module in modules():
        if module.room not in ("dev", "cli"):
            for line, name in module.imports():
                assert not name.startswith("apps.api.dev"), f"{module.path}:{line}: production has no embedded servers"


def test_the_demo_model_knows_nothing_of_the_api() -> None:
    for module in modules():
        if module.name.startswith("apps.demo_model"):
            for line, name in module.imports():
                assert not name.startswith("apps.api"), f"{module.path}:{line}: it stands for somebody else's server"


def test_programs_that_start_before_everything_need_the_standard_library_only() -> None:
    by_name = {module.name: module for module in modules()}
    unseen, seen = list(STANDARD_LIBRARY_ONLY), set[str]()
    while unseen:
        module = by_name[unseen.pop()]
        seen.add(module.name)
        for line, name in module.imports():
            if name in by_name:
                unseen += [name] if name not in seen else []
            else:
                inside = name.split(".")[0] in sys.stdlib_module_names
                assert inside, f"{module.path}:{line}: {name} is not in the standard library"


def test_no_module_is_too_long() -> None:
    for module in modules():
        limit, reason = LONGER_WITH_A_REASON.get(module.name, (MAX_MODULE_LINES, "a reader must find the end of it"))
        assert module.lines <= limit, f"{module.path} has {module.lines} lines, may have {limit}: {reason}"


def test_modules_with_a_reason_to_be_long_are_long() -> None:
    lines = {m.name: m.lines for m in modules()}
    stale = [name for name in LONGER_WITH_A_REASON if lines.get(name, 0) <= MAX_MODULE_LINES]
    assert not stale, f"short enough now, so take them out of LONGER_WITH_A_REASON: {stale}"


def test_no_function_is_too_long() -> None:
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MAX_FUNCTION_LINES, (
                    f"{module.path}:{node.lineno}: {node.name} has {lines} lines, may have {MAX_FUNCTION_LINES}:"
                    " a function should fit on a screen"
                )


OPENS_FILES = {
    "core.files.trees": "the way to what agents may have made",
    "core.files.removal": "the way to remove it",
    "core.files.snapshots": "the directories themselves; what is in them by core.files.trees",
    "core.files.restoring": "what it makes, by descriptors of core.files.trees",
    "core.files.disk_tree": "one name in a directory that core.files.trees has opened; files of the server's own",
    "core.files.objects": "a directory that is the store, which no agent can reach",
    "core.files.archives": "an archive that a client has sent, in a directory of the server's own",
    "core.files.record": "a directory of the server's own",
    "core.files.tarball": "an archive that a command has opened",
    "core.sessions.workspaces": "directories above those of agents, and copies that are not theirs yet",
    "core.config.profiles": "a file of the operator's",
    "runner.session.provisions": "what it puts together, in a directory of the server's own",
    "runner.agent.scratch": "directories above those of agents' processes",
    "runner.agent.history": "a configuration of which no agent knows yet",
    "runner.agent.extensions": "what agents can only read",
    "runner.guard.launcher": "the launcher, the CLI",
    "runner.guard.trial": "directories of a trial start, with names that nobody knew",
    "runner.guard.isolation": "what the machine itself offers",
    "runner.agent.clone": "links of a clone that no agent has seen, by descriptors of core.files.trees",
    "core.files.patches": "copies of files, under numbers, in a directory of the server's own",
    "runner.session.ports": "/proc",
    "runner.guard.processes": "/proc",
    "runner.guard.cgroups": "/sys/fs/cgroup",
    "runner.guard.program": "runs in a process of its own, with the agent's rights once it is confined",
    "runner.guard.confinement": "the same",
    "runner.guard.inside": "the same",
    "runner.guard.namespaces": "the same, before; a directory in one that no agent has seen",
}
"""Modules of core and runner that may open, look at, make or remove files themselves, and which ones."""

_OF_OS = {
    *("open", "walk", "fwalk", "scandir", "listdir", "stat", "lstat", "readlink", "access", "utime", "chmod", "chown"),
    *("mkdir", "makedirs", "mkfifo", "link", "symlink", "rename", "renames", "replace", "remove", "unlink", "rmdir"),
    *("removedirs", "truncate", "path.exists", "path.lexists", "path.isdir", "path.isfile", "path.islink"),
    *("path.realpath", "path.getsize", "path.getmtime"),
}
_OF_PATHS = {
    *("read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "glob", "rglob", "is_dir", "is_file"),
    *("is_symlink", "is_fifo", "lstat", "mkdir", "unlink", "rmdir", "symlink_to", "hardlink_to", "readlink", "touch"),
    *("chmod", "rename", "open"),
}
_OF_PATHS_WITHOUT_ARGUMENTS = {"exists", "stat", "resolve"}


def file_calls(module: Module) -> Iterator[tuple[int, str]]:
    """Line and name of every call that works on files by their paths, or might."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        if (
            name in ("open", "io.open")
            or name.startswith(("shutil.", "tempfile.", "glob."))
            or (name.startswith("os.") and name.removeprefix("os.") in _OF_OS)
            or (isinstance(node.func, ast.Attribute) and method in _OF_PATHS)
            or (isinstance(node.func, ast.Attribute) and method in _OF_PATHS_WITHOUT_ARGUMENTS and not node.args)
            or (method == "replace" and len(node.args) == 1 and not node.keywords)
        ):
            yield node.lineno, name


def test_only_few_modules_open_files() -> None:
    found = {
        module.name.removeprefix("apps.api."): [f"{module.name}:{line}: {name}" for line, name in file_calls(module)]
        for module in api_modules()
        if module.room in ("core", "runner")
    }
    stray = [call for name, calls in found.items() if name not in OPENS_FILES for call in calls]
    assert not stray, "what agents may have made is opened by core.files.trees alone:\n" + "\n".join(stray)
    assert not [name for name in OPENS_FILES if not found[name]], "take those out that open nothing any more"


def test_nothing_removes_trees_by_recursion() -> None:
    for module in api_modules():
        if module.room in ("core", "runner"):
            assert "shutil" not in {name.partition(".")[0] for _, name in module.imports()}, module.name


OTHER_CLOCKS = {
    "clock": "the one way to a wall time",
    "core.sessions.workspaces": "the age of files, which the machine has dated",
    "core.files.snapshots": "the same",
    "runner.agent.scratch": "the same",
    "limits": "the library's window, which begins by the same clock",
}
"""Modules that may ask the machine what time it is; everything else goes by the database's clock."""

_WALL = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}
_WALL |= {"time.gmtime", "time.localtime", "time.strftime", "time.ctime"}


def test_nobody_asks_the_machine_what_time_it_is() -> None:
    found = {
        module.name.removeprefix("apps.api."): [
            f"{module.path}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in _WALL
        ]
        for module in api_modules()
        if module.room != "dev"
    }
    stray = [use for name, uses in found.items() if name not in OTHER_CLOCKS for use in uses]
    assert not stray, "apps.api.clock has the fleet's time:\n" + "\n".join(stray)
    assert not [name for name in OTHER_CLOCKS if not found[name]], "take those out that ask no more"


def test_clients_know_nothing_of_the_server() -> None:
    """They are installed where it is not: what they need beside the standard library is httpx."""
    for path in sorted((ROOT / "clients/python/src").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_MODULE_LINES, path
        module = Module(path.stem, path, ast.parse(text, feature_version=(3, 10)), 0)
        for line, name in module.imports():
            first = name.split(".")[0]
            own = first in ("claude_agent_api", "httpx") or first in sys.stdlib_module_names
            # For type checkers, which bring it.
            assert own or first == "typing_extensions", f"{path}:{line}: imports {name}"
