FROM python:3.11-slim-bookworm AS build

# uv comes from the package index, not from a registry of its own, so that a build behind mirrors needs no further one.
COPY scripts/uv.txt /opt/uv.txt
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /opt/uv.txt
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /app
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra otel --no-install-project
COPY apps apps
COPY migrations migrations
# Compiled now: the server's user cannot write here, and every start of an agent would compile its guard again.
RUN /opt/uv/bin/uv sync --frozen --no-dev --extra otel \
    && .venv/bin/python -m compileall -q apps migrations


FROM python:3.11-slim-bookworm

# For the agents' tools, and bubblewrap around them where the container may make namespaces; the bundled CLI itself needs
# no more than glibc. Their versions are those of the base image's
# Debian release, whose security updates a pin would keep out.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap ca-certificates git ripgrep \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-log-init --create-home --home-dir /var/lib/claude-agent-api \
        --shell /usr/sbin/nologin claude-agent-api \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/claude-agent-api/workspaces
COPY --from=build /app /app
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PORT=54000 \
    WORKSPACES_DIR=/var/lib/claude-agent-api/workspaces
WORKDIR /var/lib/claude-agent-api
USER 10001
VOLUME /var/lib/claude-agent-api/workspaces
EXPOSE 54000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]
# Needs no init process: the server handles SIGTERM, and each agent's guard reaps what its agent started.
CMD ["claude-agent-api", "serve"]
