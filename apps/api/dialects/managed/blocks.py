"""Content blocks as these clients know them. Events tell of images and documents how large
they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def _omitted(block: Mapping[str, Any]) -> dict[str, Any]:
    source = block.get("source") or {}
    what = source.get("media_type") or block["type"]
    size = f", {block['bytes']} bytes" if "bytes" in block else ""
    return {"type": "text", "text": f"[{what}{size}: events do not carry it]"}


def _block(block: Mapping[str, Any]) -> dict[str, Any]:
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    return _omitted(block) if block.get("type") in ("image", "document") else {"type": "text", "text": str(block)}


def prompt_blocks(content: str | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a person said."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_block(block) for block in content if block.get("type") != "tool_result"]


def result_blocks(content: Any) -> list[dict[str, Any]]:
    """What a tool has answered."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_block(block) if isinstance(block, Mapping) else {"type": "text", "text": str(block)} for block in content]
