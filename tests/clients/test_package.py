"""The Python client as a package: its types are those of the document, both clients have the same methods, webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.util
import inspect
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
from claude_agent_api import AsyncClient, AsyncTurn, Client, Turn, WebhookInvalid, types, verify_webhook

ROOT = Path(__file__).parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "clients/python/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_types_are_those_of_the_document() -> None:
    for path, text in generator().files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run clients/python/generate.py"
    assert set(types.__all__) >= {"Event", "PromptOptions", "SessionState", "ErrorCode"}


GROUPS = ("sessions", "runs", "requests", "files", "presets", "webhooks", "keys", "usage")


def public(of: object) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    one, other = Client(api_key="k"), AsyncClient(api_key="k")
    for a, b in [(one, other), *((getattr(one, g), getattr(other, g)) for g in GROUPS), (Turn, AsyncTurn)]:
        assert public(a) == public(b)
        for name in public(a):
            ours, theirs = getattr(a, name), getattr(b, name)
            if inspect.isroutine(ours):
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
                assert ours.__doc__, f"{type(a).__name__}.{name} has no docstring"
    one.close()


SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()
BODY = json.dumps({"delivery_id": "d", "type": "run.succeeded", "data": {"ü": "🦊"}}, ensure_ascii=False).encode()


def signed(body: bytes = BODY, at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    sent = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"d.{sent}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"Webhook-Id": "d", "WEBHOOK-TIMESTAMP": sent, "webhook-signature": f"v1,old v2,x {signature}"}


def test_a_genuine_message_is_read() -> None:
    assert verify_webhook(BODY, signed(), SECRET)["data"] == {"ü": "🦊"}
    assert verify_webhook(BODY.decode(), signed(), SECRET)["type"] == "run.succeeded"
    assert verify_webhook(BODY, signed(at=time.time() - 250), SECRET)
    assert verify_webhook(BODY, signed(at=time.time() - 3000), SECRET, tolerance_seconds=3600)


@pytest.mark.parametrize(
    "headers",
    [
        signed(BODY + b" "),
        signed(at=time.time() - 400),
        signed(at=time.time() + 86_400),
        signed(secret="whsec_" + base64.b64encode(b"another").decode()),
        {**signed(), "webhook-signature": ""},
        {**signed(), "webhook-signature": "v1, v1 v1,ü"},
        {**signed(), "Webhook-Id": "e"},
        {**signed(), "WEBHOOK-TIMESTAMP": "-1"},
        {**signed(), "WEBHOOK-TIMESTAMP": "٣"},
        {**signed(), "WEBHOOK-TIMESTAMP": "9" * 4000},
        {},
    ],
)
def test_a_message_that_is_not_genuine_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(WebhookInvalid):
        verify_webhook(BODY, headers, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!", "whsec_ü"])
def test_what_is_no_secret_is_said(secret: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        verify_webhook(BODY, signed(), secret)
