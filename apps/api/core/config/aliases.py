"""Names of models that clients still use, and the current models that answer to them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from apps.api.settings import Settings


def current_model(settings: Settings, asked: str | None) -> str | None:
    """The model for a name that a client of an older server asks for; None: the default one.

    A model that this server names (DEFAULT_MODEL, MODELS, the targets of MODEL_ALIASES) is itself. Any other name is
    looked up in MODEL_ALIASES, the first pattern that fits; what fits none becomes the default, never an error.
    """
    aliases = settings.aliases_of_models
    if asked is None or asked in (settings.default_model, *settings.models, *(model for _, model in aliases)):
        return asked
    return first_fit(aliases, asked)


def first_fit(names: Iterable[tuple[str, str]], asked: str) -> str | None:
    """What stands beside the first pattern that fits; in any case, as in file names."""
    return next((name for pattern, name in names if fnmatchcase(asked.lower(), pattern.lower())), None)
