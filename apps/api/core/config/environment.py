"""Variables that a client may not set: those that decide which code a program runs, or whom it trusts.

Names are compared without regard to case, since npm and others read theirs in any.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from apps.api.errors import ValidationError

_OF_AGENTS = (
    # The agent's own program, its credentials and its network.
    r"(?:ANTHROPIC|CLAUDE|CLI_GUARD|CCR|BUN|OTEL|DISABLE|AWS|GOOGLE|AZURE)_.*",
    r"IS_SANDBOX|API_TIMEOUT_MS|SSL_CERT_(?:FILE|DIR)|(?:HTTPS?|NO|ALL)_PROXY|DATABASE_(?:OWNER_)?URL|REDIS_URL|API_KEY",
    # What it starts unasked: the loader, shells, ripgrep and git, which looks at the workspace.
    r"(?:LD|DYLD|GLIBC|PYTHON|OPENSSL|BASH)_.*|NODE_(?!ENV$).*|PYTHON.*|GCONV_PATH|RIPGREP_CONFIG_PATH",
    r"PATH|HOME|PWD|SHELL|IFS|ENV|TMPDIR|ZDOTDIR|SHELLOPTS|BASHOPTS|PS4|PROMPT_COMMAND",
    r"GIT_(?!(?:(?:AUTHOR|COMMITTER)_(?:NAME|EMAIL|DATE)|TERMINAL_PROMPT|OPTIONAL_LOCKS|TOKEN|COMMIT|BRANCH|SHA)$).*",
)
_OF_SERVERS = (
    # Package runners and version managers: where packages come from, and where they are looked for.
    r"(?:NPM|NPX|PNPM|YARN|COREPACK|NVM|FNM|VOLTA|UV|PIP|PIPX|PIPENV|POETRY|PDM|HATCH|CONDA|MAMBA|PYENV|MISE|ASDF)_.*",
    r"(?:GEM|BUNDLE|BUNDLER|RBENV|CARGO|RUSTUP|RUSTC|MAVEN|GRADLE|JBANG|SDKMAN|NUGET|COMPOSER|MIX|HEX|NIX|HOMEBREW)_.*",
    r"(?:DOCKER|BUILDKIT|COMPOSE|PODMAN|CONTAINER|CONTAINERS|KUBE|HELM|JULIA|XDG|CURL|REQUESTS)_.*|KUBECONFIG",
    r".*_(?:REGISTRY|INDEX_URL|PROXY|CA_BUNDLE)|(?:NPM|PIP|CONDA|PHP|WGET|CURL|INPUT)RC|NETRC|VIRTUAL_ENV",
    # Interpreters and compilers: options, search paths, what is loaded first. Go's have no underscore.
    r".*_?(?:OPTIONS|OPTS)|.*_OPT|(?:PERL|RUBY).*|(?:RUST|JAVA|_JAVA|JDK|JRE|JVM)_.*|CLASSPATH|GO[A-Z0-9]*",
    r"(?:DENO|DOTNET|COREHOST|CORECLR|COR|MONO|PHP|LUA|ERL|ELIXIR|GUILE|CGO|R)_.*|OCAML.*|TCL.*|TK_LIBRARY",
    r"CC|CXX|CPP|AR|LD|MAKE|SHLIB_PATH|LIBPATH|(?:C|CXX|CPP|LD|MAKE|RUST)FLAGS",
    # Libraries that load modules or resolve names, and helpers that programs start.
    r"(?:GIO|GTK|QT|KRB5|SASL|SSH)_.*|LOCPATH|HOSTALIASES|LOCALDOMAIN|LESSOPEN|LESSCLOSE|BROWSER|VISUAL",
    r".*_?(?:PAGER|EDITOR|ASKPASS|PRELOAD)",
)


_RESERVED = re.compile("|".join(_OF_AGENTS), re.IGNORECASE)
_STEERING = re.compile("|".join((*_OF_AGENTS, *_OF_SERVERS)), re.IGNORECASE)


def reserved(names: Iterable[str]) -> list[str]:
    """Those which steer the agent's program, what it starts unasked, or its credentials: nobody but the server sets
    them."""
    return sorted(name for name in names if _RESERVED.fullmatch(name))


def steering(names: Iterable[str]) -> list[str]:
    """Those which also make an allowed command run something else: `npx thing` is what its registry says. A stdio MCP
    server gets none of them, neither of its own nor from its session, whose variables it inherits."""
    return sorted(name for name in names if _STEERING.fullmatch(name))


def permit(env: Iterable[str], kinds: Container[str]) -> None:
    """Judge names of a session whose MCP servers are of these kinds. Raises ValidationError."""
    if "stdio" in kinds and (names := steering(env)):
        reason = f"may not be set where an MCP server is a program (stdio), which inherits it: {', '.join(names)}"
        raise ValidationError.of("env", reason)
