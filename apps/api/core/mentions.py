"""`@file` mentions in prompts that may have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from apps.api.errors import ValidationError

# The agent's program takes a mention before it asks for any permission, and reads whatever it can.
_MENTION = re.compile(r'@(?:"([^"]*)|([^\s"]*))')


def require_inside(prompt: str | Iterable[Any]) -> None:
    """Raises ValidationError when a prompt, text or content blocks, mentions a path that leads out of the workspace."""
    texts = [prompt] if isinstance(prompt, str) else [b.get("text", "") for b in prompt if isinstance(b, dict)]
    for found in _MENTION.finditer("\n".join(texts)):
        path = found[1] or found[2] or ""
        if path.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", path):
            raise ValidationError.of("prompt", f"@{path[:200]} leads out of the workspace")
