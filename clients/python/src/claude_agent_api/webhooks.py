"""Whether a webhook's message is genuine: https://www.standardwebhooks.com"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from claude_agent_api.errors import WebhookInvalid

TOLERANCE_SECONDS = 300.0


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> dict[str, Any]:
    """The message, once it is certain that the server has sent it, and not long ago.

    It may come twice, with the same `delivery_id`: remember those that you have seen.

    Args:
        body: as it came; parsed and written anew it is another one.
        headers: of the request, in any case.
        secret: `whsec_…`, from the answer that created the webhook, or that rotated its secret.
        tolerance_seconds: how old, or how far ahead, its time may be.

    Returns:
        `delivery_id`, `type`, `created_at`, `data`.

    Raises:
        WebhookInvalid: it is not genuine, was changed, or is too old.
        ValueError: that is no secret of a webhook.
    """
    raw = body.encode() if isinstance(body, str) else bytes(body)
    found = {name.lower(): value for name, value in headers.items()}
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the secret is not like whsec_…") from error
    if not key:
        raise ValueError("the secret is empty")
    id_, sent_at = found.get("webhook-id", ""), found.get("webhook-timestamp", "")
    signatures = found.get("webhook-signature", "")
    if not id_ or not signatures or not (sent_at.isascii() and sent_at.isdecimal() and len(sent_at) < 16):
        raise WebhookInvalid("a header is missing: webhook-id, webhook-timestamp or webhook-signature")
    digest = hmac.new(key, f"{id_}.{sent_at}.".encode() + raw, hashlib.sha256).digest()
    wanted = b"v1," + base64.b64encode(digest)
    # All of them are compared, so that the time tells nothing.
    if not sum(hmac.compare_digest(wanted, one.encode()) for one in signatures.split(" ")):
        raise WebhookInvalid("no signature is of this secret and this body")
    if abs(time.time() - int(sent_at)) > tolerance_seconds:
        raise WebhookInvalid("the message is too old, or a clock is wrong")
    message: dict[str, Any] = json.loads(raw)
    return message
