"""Prompts whose slash commands and `@file` mentions act: what they may not do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from apps.api.errors import ValidationError

# The agent's program takes a mention before it asks for any permission, and reads whatever it can.
_MENTION = re.compile(r'@(?:"([^"]*)|([^\s"]*))')

# They would get around what a profile allows, or write the program's memory, credentials in it, to a file.
_REFUSED = re.compile(r"\s*/(model|config|settings|heapdump)\b", re.IGNORECASE)


def check(prompt: str | Iterable[Any]) -> None:
    """Raises ValidationError when a prompt, text or content blocks, mentions a path that leads out of the workspace, or
    calls a command of the agent's program that clients may not use."""
    texts = [prompt] if isinstance(prompt, str) else [b.get("text", "") for b in prompt if isinstance(b, dict)]
    for text in texts:
        if found := _REFUSED.match(text):
            raise ValidationError.of("prompt", f"the command /{found[1]} is not for clients; there are options for it")
    for found in _MENTION.finditer("\n".join(texts)):
        path = found[1] or found[2] or ""
        if path.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", path):
            raise ValidationError.of("prompt", f"@{path[:200]} leads out of the workspace")
