"""Signatures of what the server sends: Standard Webhooks (https://www.standardwebhooks.com), symmetric, version 1."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"


def new_secret() -> str:
    """A fresh secret of 256 random bits, in the form that Standard Webhooks libraries take."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(secret: str) -> bytes:
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows {PREFIX} is not base64") from error


def headers(signing: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one signed message.

    Args:
        signing: secrets, of which each makes a signature: two while a rotation is under way. One without the prefix
            `whsec_` is used as it is.
        timestamp: seconds since 1970.

    Raises:
        ValueError: a secret has the prefix, and no base64 after it.
    """
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    made = [base64.b64encode(hmac.digest(_key(secret), content, hashlib.sha256)).decode() for secret in signing]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in made),
    }
