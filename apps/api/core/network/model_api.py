"""Where the model API is, and by what credential the server is known to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from apps.api.settings import Settings

ANTHROPIC = "https://api.anthropic.com"


@dataclass(frozen=True, slots=True)
class ModelApi:
    """An endpoint that speaks the Messages API.

    Attributes:
        scheme: `http` or `https`.
        host: name or address; what TLS asks for.
        path: before `/v1/messages`, without a slash at its end.
        headers: those by which the server is known.
    """

    scheme: str
    host: str
    port: int
    path: str
    headers: dict[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """For the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _USUAL[self.scheme] else f"{host}:{self.port}"

    def known_by(self, kind: str, secret: str) -> ModelApi:
        """The same endpoint, by another credential: an `api_key`, or else a bearer token."""
        return replace(self, headers=_by_key(secret) if kind == "api_key" else _by_token(secret))


_USUAL = {"http": 80, "https": 443}


def of(settings: Settings) -> ModelApi:
    """The operator's.

    ANTHROPIC_API_KEY is sent as `x-api-key`, ANTHROPIC_AUTH_TOKEN as a bearer token, as the CLI itself does.
    Raises ValueError for an ANTHROPIC_BASE_URL that is none.
    """
    parts = urlsplit(settings.anthropic_base_url or ANTHROPIC)
    if parts.scheme not in _USUAL or not parts.hostname:
        raise ValueError("ANTHROPIC_BASE_URL: must start with http:// or https:// and name a host")
    return ModelApi(
        parts.scheme, parts.hostname, parts.port or _USUAL[parts.scheme], parts.path.rstrip("/"), credential(settings)
    )


def credential(settings: Settings) -> dict[str, str]:
    """The headers by which the server is known; none where no credential is set."""
    if settings.anthropic_api_key:
        return _by_key(settings.anthropic_api_key.get_secret_value())
    if settings.anthropic_auth_token:
        return _by_token(settings.anthropic_auth_token.get_secret_value())
    if settings.claude_code_oauth_token:
        token = _by_token(settings.claude_code_oauth_token.get_secret_value())
        return {**token, "anthropic-beta": "oauth-2025-04-20"}
    return {}


def _by_key(key: str) -> dict[str, str]:
    return {"x-api-key": key}


def _by_token(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
