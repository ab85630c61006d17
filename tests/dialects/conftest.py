"""What the tests of the dialects share: the shape of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shaped(body: Any, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The body, once it has these fields, in this order, and each is of its type (a tuple: of one of them)."""
    assert isinstance(body, dict), body
    assert list(body) == list(shape), body
    for name, kind in shape.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        assert type(body[name]) in kinds, f"{name}: {body[name]!r}"
    return body
