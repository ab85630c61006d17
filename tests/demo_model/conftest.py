"""The demo model on a free loopback port, and the real CLI pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions

from apps.demo_model.server import serving


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def options(base_url: str, tmp_path: Path, workspace: Path) -> Callable[..., ClaudeAgentOptions]:
    """Options for a CLI that knows nothing but the demo model; keyword arguments override."""

    def build(**overrides: Any) -> ClaudeAgentOptions:
        env = {
            "ANTHROPIC_BASE_URL": base_url,
            "ANTHROPIC_API_KEY": "dummy",
            "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "IS_SANDBOX": "1",
        }
        chosen: dict[str, Any] = {
            "cwd": workspace,
            "env": env,
            "model": "claude-sonnet-5-5",
            "permission_mode": "bypassPermissions",
            "setting_sources": [],
            **overrides,
        }
        return ClaudeAgentOptions(**chosen)

    return build
