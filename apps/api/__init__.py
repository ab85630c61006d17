"""Claude Agent API: the HTTP service."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("claude-agent-api")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"
