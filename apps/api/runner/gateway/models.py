"""Which model a call is for, where a tenant or a key may use only some."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from apps.api.core.config.models import permitted
from apps.api.errors import Forbidden
from apps.api.runner.gateway.caller import Asked, NotPossible


def admit(asked: Asked, lists: Sequence[Sequence[str]], own: str | None) -> bool:
    """Have a request name a model that each of the lists has: its own, or else `own`, the session's, since the agent's
    program also asks for models that nobody has chosen (small ones, a subagent's that the model wishes for).

    What is sent is written anew: a second name in it, however it is spelt, would be the model API's to choose from.

    Returns whether the session's takes the place of another.

    Raises:
        NotPossible: the request is no JSON object.
        Forbidden: `model_not_permitted`.
    """
    try:
        body = orjson.loads(b"".join(asked.body))
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise NotPossible(400, "invalid_request_error", "The body is no JSON object.")
    name = body.get("model")
    replaced = not (isinstance(name, str) and permitted(lists, name))
    if replaced:
        if own is None or not permitted(lists, own):
            shown = repr(name)[:200]
            raise Forbidden(
                f"The model {shown} is not among those of the tenant or the key.", code="model_not_permitted"
            )
        body["model"] = own
    whole = orjson.dumps(body)
    asked.body[:], asked.size = [whole], len(whole)
    return replaced
