"""What the local mode says on the terminal."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from apps.api.settings import Settings

NOTEWORTHY = re.compile(
    r"""\[(warning|error|critical)\s*\]           # structlog for people
      | "level":\s?"(warning|error|critical)"      # structlog in JSON
      | ^(WARNING|ERROR|CRITICAL)\s                # the logging module
      | ^Traceback""",
    re.VERBOSE,
)
"""Log lines that deserve attention, in each of the formats of logs.py."""


DEMO = "!! DEMO MODEL: replies are scripted, NOT from Claude. Set ANTHROPIC_API_KEY to talk to Claude. !!"


@dataclass(frozen=True, slots=True)
class Model:
    """Who answers, in words, and a prompt that shows something with it."""

    name: str
    prompt: str
    is_demo: bool = False


def describe_model(settings: Settings, *, demo: bool) -> Model:
    """The model that the servers will use."""
    if demo:
        return Model("the demo model", "stream 12 words slowly", is_demo=True)
    prompt = "Write a haiku about databases."
    if settings.cloud:
        return Model(f"{settings.default_model} (on {settings.cloud.capitalize()})", prompt)
    if settings.anthropic_base_url is not None:
        # Only the host: the URL itself may hold credentials.
        return Model(f"{settings.default_model} at {urlsplit(settings.anthropic_base_url).hostname}", prompt)
    source = "ANTHROPIC_API_KEY" if settings.anthropic_api_key else "CLAUDE_CODE_OAUTH_TOKEN"
    return Model(f"{settings.default_model} (with {source})", prompt)


def welcome(urls: list[str], key: Path | None, logs: Path, model: Model, *, console: bool) -> str:
    """The text that greets when everything is ready. `key`: the file that holds an API key, if one does."""
    header = f"$(cat {shown(key)})" if key else "YOUR_KEY"
    origin = f"{shown(key)}" if key else "claude-agent-api keys create --tenant default --name dev"
    lines = ["", bold("Claude Agent API is ready."), ""]
    lines += [f"  API      {url}" for url in urls]
    if console:
        lines.append(f"  Console  {urls[0]}/console")
    lines += [
        f"  Docs     {urls[0]}/docs",
        f"  API key  {origin}",
        f"  Logs     {shown(logs)}",
        f"  Model    {model.name}",
        "",
    ]
    if model.is_demo:
        lines += [warning(DEMO), ""]
    body = f'{{"prompt": "{model.prompt}"}}'
    curl = f"curl -N {urls[0]}/api/v1/query -H \"X-API-Key: {header}\" -H 'Content-Type: application/json' -d '{body}'"
    lines += ["Try it:", "", f"  {curl}", "", "Ctrl-C stops everything.", ""]
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as the caller's shell understands it: short where it is below the caller's directory."""
    # scripts/dev changes to the root of the repository, but the curl line is pasted where its caller is.
    caller = Path(os.environ.get("CALLER_DIR") or Path.cwd())
    text = str(path.relative_to(caller)) if path.is_relative_to(caller) else str(path)
    return text if re.fullmatch(r"[\w./-]+", text) else f"'{text}'"


def say(text: str) -> None:
    print(text, flush=True)


def complain(text: str) -> None:
    print(warning(text), file=sys.stderr, flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if _is_coloured() else text


def warning(text: str) -> str:
    return f"\033[1;33m{text}\033[0m" if _is_coloured() else text


class LogTail:
    """Shows what is new in a log file: all of it, or what deserves attention.

    Args:
        prefix: put before each line.
        everything: whether to show lines of every level.
    """

    def __init__(self, path: Path, prefix: str, *, everything: bool) -> None:
        self._path, self._prefix, self._everything = path, prefix, everything
        self._position = 0

    def show_new(self) -> None:
        """Print the complete lines that were written since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
        except OSError:
            # Removed under our feet; the servers go on writing where nobody can read.
            return
        complete = new[: new.rfind(b"\n") + 1]
        self._position += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            if self._everything or NOTEWORTHY.search(line):
                say(f"{self._prefix}{line}")


def _is_coloured() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty() and "NO_COLOR" not in os.environ
