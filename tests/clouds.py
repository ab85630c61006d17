"""Stand-ins for Amazon Bedrock and Google Vertex around the demo model: they check who asks, and speak as those do."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Asked:
    """A request that was let in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Exchange:
    """A request, and the ways to answer it."""

    app: ASGIApp
    scope: Scope
    headers: dict[str, str]
    body: bytes
    receive: Receive
    send: Send

    @property
    def path(self) -> str:
        return str(self.scope["raw_path"].decode())

    async def answer(self, status: int, said: Any, **more: str) -> None:
        told = {"content-type": "application/json", **more}
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        await self.send({"type": "http.response.body", "body": body})

    async def ask(self, path: str, inner: dict[str, Any], told: Send | None = None) -> None:
        """Have the demo model answer `inner`."""
        text = json.dumps(inner).encode()

        async def again() -> Message:
            nonlocal text
            if text:
                message, text = {"type": "http.request", "body": text, "more_body": False}, b""
                return message
            return await self.receive()

        plain = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
        scope = {**self.scope, "path": path, "raw_path": path.encode(), "headers": plain}
        await self.app(scope, again, told or self.send)


@dataclass
class Cloud:
    """What both have.

    Attributes:
        models: ids of this cloud, and the demo model's names for them.
        fails: with what requests are answered, in place of the model: status, headers, body (JSON unless it is bytes).
    """

    models: dict[str, str]
    asked: list[Asked] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    fails: tuple[int, dict[str, str], Any] | None = None

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            body = b""
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            exchange = Exchange(app, scope, headers, body, receive, send)
            try:
                await self.serve(exchange)
            except AssertionError as error:
                self.refused.append(str(error))
                await exchange.answer(403, {"message": str(error)})

        return served

    async def serve(self, exchange: Exchange) -> None:
        raise NotImplementedError

    async def let_in(self, exchange: Exchange, given: dict[str, Any]) -> bool:
        """Note a request that is as it should be. Returns whether the model may answer it."""
        self.asked.append(Asked(exchange.path, exchange.headers, given))
        if self.fails is not None:
            status, more, said = self.fails
            await exchange.answer(status, said, **more)
        return self.fails is None


@dataclass
class Bedrock(Cloud):
    """Takes requests that are signed by SigV4 with these credentials, for this region; or that show `bearer`."""

    key: str = "AKIDOFTHETESTS"
    secret: str = "secret-of-the-tests"
    token: str | None = None
    bearer: str | None = None
    region: str = "eu-test-1"

    def _check(self, exchange: Exchange) -> None:
        headers = exchange.headers
        given = headers.get("authorization", "")
        if self.bearer:
            assert given == f"Bearer {self.bearer}", "another bearer"
            return
        assert given.startswith("AWS4-HMAC-SHA256 "), "no signature"
        parts = dict(part.split("=", 1) for part in given.partition(" ")[2].split(", "))
        names = parts["SignedHeaders"].split(";")
        assert {"host", "x-amz-date"} <= set(names), "too little is signed"
        assert headers.get("x-amz-security-token") == self.token, "another token"
        at = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=5), "signed long ago"
        request = AWSRequest(
            method=exchange.scope["method"],
            url=f"http://{headers['host']}{exchange.path}",
            headers={name: headers[name] for name in names},
            data=exchange.body,
        )
        request.context["timestamp"] = headers["x-amz-date"]
        signer = SigV4Auth(Credentials(self.key, self.secret, self.token), "bedrock", self.region)
        wanted = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        assert parts["Credential"].startswith(f"{self.key}/"), "another key"
        assert parts["Signature"] == wanted, "the signature is wrong"

    async def serve(self, exchange: Exchange) -> None:
        self._check(exchange)
        empty, begins, quoted, ends = exchange.path.split("/")
        assert (empty, begins) == ("", "model"), exchange.path
        assert ends in ("invoke", "invoke-with-response-stream"), exchange.path
        given = json.loads(exchange.body)
        assert given.get("anthropic_version"), "no version"
        assert not {"model", "stream"} & given.keys(), "what Bedrock does not know"
        if await self.let_in(exchange, given):
            streams = ends == "invoke-with-response-stream"
            inner = {**given, "model": self.models.get(unquote(quoted), ""), "stream": streams}
            await exchange.ask("/v1/messages", inner, _as_events(exchange.send) if streams else None)


def _as_events(send: Send) -> Send:
    """What sends SSE as Bedrock's own stream of events, in pieces that end anywhere."""
    rest, is_stream = b"", False

    async def told(message: Message) -> None:
        nonlocal rest, is_stream
        if message["type"] == "http.response.start":
            is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            if is_stream:
                message = {**message, "headers": [(b"content-type", b"application/vnd.amazon.eventstream")]}
        elif is_stream:
            *whole, rest = (rest + message.get("body", b"")).split(b"\n\n")
            frames = b"".join(frame_of(event.partition(b"data: ")[2]) for event in whole)
            half = len(frames) // 2
            if half:
                await send({**message, "body": frames[:half], "more_body": True})
            message = {**message, "body": frames[half:]}
        await send(message)

    return told


def frame_of(data: bytes, *, exception: str | None = None) -> bytes:
    """One event of an event stream of AWS; an exception of this name if there is one."""
    payload = data if exception else json.dumps({"bytes": base64.b64encode(data).decode(), "p": "abc"}).encode()
    kind = {":exception-type": exception, ":message-type": "exception"} if exception else {":event-type": "chunk"}
    named = {"x": "y", ":content-type": "application/json", ":message-type": "event", **kind}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value or "")) + (value or "").encode()
        for name, value in named.items()
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    head = prelude + struct.pack("!I", binascii.crc32(prelude))
    return head + headers + payload + struct.pack("!I", binascii.crc32(head + headers + payload))


@dataclass
class Vertex(Cloud):
    """Takes requests with a token that it has given to its service account, and knows one project in one region."""

    project: str = "project-of-the-tests"
    region: str = "europe-test1"
    tokens: list[str] = field(default_factory=list)
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def credentials(self, url: str) -> dict[str, str]:
        """What stands in the file of GOOGLE_APPLICATION_CREDENTIALS."""
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return {
            "type": "service_account",
            "project_id": self.project,
            "private_key_id": "1",
            "private_key": self.key.private_bytes(*form).decode(),
            "client_email": "tests@example.test",
            "token_uri": f"{url}/token",
        }

    async def serve(self, exchange: Exchange) -> None:
        if exchange.path == "/token":
            await self._give_token(exchange)
            return
        assert exchange.headers.get("authorization", "").removeprefix("Bearer ") in self.tokens, "another token"
        base = f"/v1/projects/{self.project}/locations/{self.region}/publishers/anthropic/models/"
        assert exchange.path.startswith(base), exchange.path
        name, _, what = unquote(exchange.path.removeprefix(base)).rpartition(":")
        given = json.loads(exchange.body)
        assert given.get("anthropic_version"), "no version"
        counts = name == "count-tokens"
        assert counts or "model" not in given, "what Vertex does not know"
        assert what == ("streamRawPredict" if given.get("stream") else "rawPredict"), exchange.path
        if await self.let_in(exchange, given):
            inner = {**given, "model": self.models.get(given["model"] if counts else name, "")}
            await exchange.ask("/v1/messages/count_tokens" if counts else "/v1/messages", inner)

    async def _give_token(self, exchange: Exchange) -> None:
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        shown = parse_qs(exchange.body.decode())["assertion"][0]
        claims = jwt.decode(shown, certs=self.key.public_key().public_bytes(*form))  # type: ignore[no-untyped-call]
        assert claims["iss"] == "tests@example.test", "another account"
        assert "cloud-platform" in claims["scope"], "another scope"
        self.tokens.append(f"token-{len(self.tokens) + 1}")
        given = {"access_token": self.tokens[-1], "expires_in": 3600, "token_type": "Bearer"}
        await exchange.answer(200, given)
