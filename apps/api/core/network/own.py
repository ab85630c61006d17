"""What of the network is the fleet's own: the databases that no agent reaches in any mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from apps.api.settings import Settings

POSTGRESQL, REDIS = 5432, 6379


def databases(settings: Settings) -> frozenset[tuple[str, int]]:
    """Host and port of PostgreSQL and Redis, as the settings name them. Those with a path are on no network."""
    urls = [settings.database_url, *filter(None, [settings.database_owner_url])]
    found = {endpoint for url in urls for endpoint in _postgresql(url.get_secret_value())}
    redis = urlsplit(settings.redis_url.get_secret_value())
    if redis.scheme != "unix":
        found.add((redis.hostname or "localhost", redis.port or REDIS))
    return frozenset(found)


def _postgresql(url: str) -> Iterator[tuple[str, int]]:
    """Source: libpq's connection URIs, which may name several hosts, in the authority or in `host` and `port`."""
    # Not by urlsplit, which in some releases of Python takes brackets of a single host alone.
    place, _, query = url.partition("://")[2].partition("?")
    given = dict(parse_qsl(query))
    usual = given.get("port") or os.environ.get("PGPORT") or str(POSTGRESQL)
    hosts = [host for host in place.partition("/")[0].rpartition("@")[2].split(",") if host]
    hosts = hosts or (given.get("host") or os.environ.get("PGHOST") or "localhost").split(",")
    ports = usual.split(",")
    for number, host in enumerate(hosts):
        if host.startswith(("/", "%2F", "%2f", "@")):
            continue
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
        port = port or (ports[number] if number < len(ports) else ports[-1])
        if port.isdigit():
            yield name.strip("[]") or "localhost", int(port)
