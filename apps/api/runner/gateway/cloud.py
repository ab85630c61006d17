"""The operator's model in a cloud: Amazon Bedrock or Google Vertex.

The official client makes the request out of the agent's (path, body, signature or token) and reads Bedrock's events. It
sends nothing: what goes over the wire goes as to the Messages API, see `upstream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from apps.api.core.config.aliases import first_fit
from apps.api.core.network.model_api import ModelApi
from apps.api.errors import Unavailable
from apps.api.runner.gateway.caller import Asked, NotPossible
from apps.api.runner.gateway.upstream import Unreachable
from apps.api.settings import Settings

if TYPE_CHECKING:
    from anthropic import AsyncAnthropicBedrock, AsyncAnthropicVertex

log = structlog.get_logger(__name__)

SIGN_SECONDS = 10.0
"""For credentials: the machine's own are asked for over its network, and so are tokens."""

EVENT_STREAM = "application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire, and where to."""

    api: ModelApi
    head: bytes
    body: list[bytes]


class Cloud:
    """The way to the operator's cloud. Its libraries take 2 s and 100 MB, and are there after `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AsyncAnthropicBedrock | AsyncAnthropicVertex | None = None

    async def load(self) -> None:
        """Load the client."""
        self._client = await asyncio.to_thread(self._made)

    def _made(self) -> AsyncAnthropicBedrock | AsyncAnthropicVertex:
        settings = self._settings
        if settings.cloud == "bedrock":
            import boto3.session  # noqa: F401 - so that the first call does not wait for it
            from anthropic import AsyncAnthropicBedrock
            from anthropic.lib.bedrock._stream_decoder import get_response_stream_shape

            get_response_stream_shape()
            return AsyncAnthropicBedrock(
                aws_region=settings.aws_region, base_url=settings.anthropic_bedrock_base_url, open_telemetry=False
            )
        import google.auth.transport.requests  # noqa: F401
        from anthropic import AsyncAnthropicVertex

        return AsyncAnthropicVertex(
            region=settings.cloud_ml_region or "",
            project_id=settings.anthropic_vertex_project_id or "",
            base_url=settings.anthropic_vertex_base_url,
            open_telemetry=False,
        )

    async def close(self) -> None:
        """Let the client go."""
        if self._client is not None:
            await self._client.close()

    async def request(self, asked: Asked) -> Request:
        """What an agent asks for, as this cloud takes it.

        Raises:
            NotPossible: it does not.
            Unavailable: `model_not_configured`, there are no credentials.
            Unreachable: those whom credentials come from cannot be reached.
        """
        from anthropic._models import FinalRequestOptions

        client = self._client
        assert client is not None  # noqa: S101 - opened with the gateway
        headers = {name.decode(): value.decode("latin-1") for name, value in asked.headers if name == b"anthropic-beta"}
        # What is not identity could not be counted.
        headers |= {"accept-encoding": "identity"}
        body = self._renamed(b"".join(asked.body))
        options = FinalRequestOptions.construct(
            method="post", url=asked.path.decode(), headers=headers, json_data=body, max_retries=0
        )
        if self._settings.cloud == "bedrock" and asked.kind == "count_tokens":
            raise NotPossible(404, "not_found_error", "Amazon Bedrock counts no tokens.")
        try:
            built = client._build_request(await client._prepare_options(options))
        except (ValueError, TypeError) as error:
            raise NotPossible(400, "invalid_request_error", "model: is no name of one.") from error
        asked.body.clear()
        await self._sign(built)
        url, method = built.url, built.method.encode()
        lines = [b"%s %s HTTP/1.1" % (method, url.raw_path), *(b"%s: %s" % pair for pair in built.headers.raw)]
        port = url.port or (443 if url.scheme == "https" else 80)
        place = ModelApi(url.scheme, url.host, port, "", {})
        return Request(place, b"\r\n".join([*lines, b"", b""]), [built.content])

    def _renamed(self, body: bytes) -> dict[str, Any]:
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            given = None
        if not isinstance(given, dict):
            raise NotPossible(400, "invalid_request_error", "The body is no JSON object.")
        if isinstance(name := given.get("model"), str):
            given["model"] = first_fit(self._settings.ids_in_the_cloud, name) or name
        return given

    async def _sign(self, request: Any) -> None:
        assert self._client is not None  # noqa: S101
        try:
            async with asyncio.timeout(SIGN_SECONDS):
                await self._client._prepare_request(request)
        # Two libraries, each with a family of its own for credentials that are missing, wrong, expired, out of reach.
        except Exception as error:
            log.error("gateway.no_credential_of_the_cloud", cloud=self._settings.cloud, error=error)
            if isinstance(error, TimeoutError | OSError) or getattr(error, "retryable", False):
                raise Unreachable("The credentials of the cloud cannot be reached.") from error
            text = "The server has no credentials that this cloud takes."
            raise Unavailable(text, code="model_not_configured") from error


def decoder(content_type: str) -> Callable[[bytes], bytes] | None:
    """What makes a stream of the Messages API of an answer with this type, piece by piece; None: it is one already.

    What it returns raises what botocore does, for what is no stream of events.
    """
    if not content_type.startswith(EVENT_STREAM):
        return None
    from anthropic.lib.bedrock._stream_decoder import AWSEventStreamDecoder
    from botocore.eventstream import EventStreamBuffer

    reads, buffer = AWSEventStreamDecoder(), EventStreamBuffer()

    def events() -> Iterator[bytes]:
        for event in buffer:
            if said := reads._parse_message_from_event(event):
                lines = said.data.replace("\n", "\ndata: ")
                yield f"event: {said.event}\ndata: {lines}\n\n".encode()

    def decode(data: bytes) -> bytes:
        buffer.add_data(data)
        return b"".join(events())

    return decode
