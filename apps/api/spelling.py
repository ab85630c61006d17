"""Names that somebody may have meant as settings, and that are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values

from apps.api.settings import Settings

SIMILAR = 0.85
"""Part of two names that agrees (difflib's ratio): `RUNER_SLOTS` is similar, `REDIS_HOST` is not."""

OTHERS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "DATABASE_PASSWORD", "TMPDIR", "TZ")
"""What `.env` may hold besides, for docker compose and for the libraries."""

FAMILIES = (
    *("COMPOSE_", "DOCKER_", "PG", "HTTP_", "HTTPS_", "NO_PROXY", "SSL_CERT_", "NODE_EXTRA_CA_CERTS", "PYTHON"),
    "OTEL_",
)
"""Beginnings of further such names."""


def doubtful(environment: Mapping[str, str], file: Path) -> list[str]:
    """One sentence for each name that is no setting: similar ones of the environment, and all of an `.env` file.

    The environment is full of other programs' names; the file is ours. Values are not looked at.
    """
    names = [name.upper() for name in Settings.model_fields]
    found = {name: f"{name} in the environment" for name in environment if _meant(name, names)}
    if file.is_file():
        given = dotenv_values(file, interpolate=False)
        found |= {name: f"{name} in {file}" for name in given if not _is_others(name)}
    return [
        f"{where} is no setting{f'; did you mean {meant}?' if (meant := _meant(name, names)) else ''}"
        for name, where in found.items()
        if name.upper() not in names
    ]


def _meant(name: str, names: Iterable[str]) -> str | None:
    if _is_others(name):
        return None
    return next(iter(get_close_matches(name.upper(), list(names), 1, SIMILAR)), None)


def _is_others(name: str) -> bool:
    return name.upper() in OTHERS or name.upper().startswith(FAMILIES)
