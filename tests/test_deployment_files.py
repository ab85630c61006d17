"""The files that deploy this service: valid by the tools of their trade, and in agreement with the settings."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from apps.api import spelling
from apps.api.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "specs/001-claude-agent-api/contracts/openapi.yaml"
TOOLS = Path(sys.executable).parent
PORT = Settings.model_fields["port"].default
DRAIN_SECONDS = 60
"""What docs/operations.md asks of a supervisor on top of SHUTDOWN_GRACE_SECONDS."""


def run(tool: str, *args: str) -> str:
    ended = subprocess.run([TOOLS / tool, *args], cwd=ROOT, capture_output=True, text=True)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_the_compose_file_follows_the_specification() -> None:
    files = ("docker-compose.yml", "deploy/compose.cgroups.yml")
    assert run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files) == ""


def test_what_is_added_to_the_compose_file_belongs_to_its_services(compose: dict[str, Any]) -> None:
    added = yaml.safe_load((ROOT / "deploy/compose.cgroups.yml").read_text())
    assert added["services"].keys() == {"api"} < compose["services"].keys()


def test_hadolint_has_no_complaint() -> None:
    assert run("hadolint", "Dockerfile") == ""


def test_the_image_runs_as_nobody_special_on_the_documented_port(dockerfile: str) -> None:
    last_stage = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last_stage, re.M) == ["10001"]
    assert re.findall(r"^EXPOSE (.+)$", last_stage, re.M) == [str(PORT)]
    assert re.findall(r"^CMD (.+)$", last_stage, re.M) == ['["claude-agent-api", "serve"]']
    assert "'/health/live'" in last_stage.partition("HEALTHCHECK")[2]
    assert re.findall(r"^FROM (\S+)", dockerfile, re.M) == ["python:3.11-slim-bookworm"] * 2


class Live(BaseHTTPRequestHandler):
    """A server that is alive and has nothing else to say."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/live" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


def test_the_health_check_of_the_image_tells_a_live_server_from_none(dockerfile: str) -> None:
    [code] = re.findall(r'"-I", "-c", "(.+)"\]', dockerfile)

    def exit_status(code: str) -> int:
        command = [sys.executable, "-I", "-c", code]
        return subprocess.run(command, env={"PORT": str(server.server_port)}, stderr=subprocess.DEVNULL).returncode

    with HTTPServer(("127.0.0.1", 0), Live) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        found = exit_status(code), exit_status(code.replace("/health/live", "/other"))
        server.shutdown()
        serving.join()
    assert (*found, exit_status(code)) == (0, 1, 1)


def test_only_what_is_named_gets_into_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule[0] == "!"} == {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def test_nginx_alone_faces_the_world(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert {name: published for name, published in ports.items() if published} == {
        "postgres": ["127.0.0.1:53432:5432"],
        "redis": ["127.0.0.1:53380:6379"],
        "nginx": [f"{PORT}:{PORT}"],
    }


def test_three_replicas_start_after_the_migration_and_stop_in_order(compose: dict[str, Any]) -> None:
    services = compose["services"]
    api = services["api"]
    assert api["deploy"]["replicas"] == 3
    assert "container_name" not in api
    conditions = {name: wait["condition"] for name, wait in api["depends_on"].items()}
    assert conditions == {
        "migrate": "service_completed_successfully",
        "postgres": "service_healthy",
        "redis": "service_healthy",
    }
    assert services["migrate"]["command"] == ["claude-agent-api", "migrate"]
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["nginx"]["depends_on"]["api"]["condition"] == "service_healthy"
    assert all("healthcheck" in services[name] for name in ("postgres", "redis", "nginx"))
    grace = Settings.model_fields["shutdown_grace_seconds"].default + DRAIN_SECONDS
    assert int(api["stop_grace_period"].removesuffix("s")) >= grace


def test_compose_sets_only_settings_that_exist_and_demands_every_secret(compose: dict[str, Any]) -> None:
    environments = {name: compose["services"][name]["environment"] for name in ("api", "migrate")}
    for environment in environments.values():
        assert set(environment) - {"POSTGRES_PASSWORD"} <= {*spelling.known()}
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {
        "API_KEY",
        "ENCRYPTION_KEYS",
        "DATABASE_PASSWORD",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
    }
    assert ":-" not in text
    given = {"API_KEY": "k" * 32, "ENCRYPTION_KEYS": "k" * 43 + "=", "POSTGRES_PASSWORD": "p1", "REDIS_PASSWORD": "r1"}
    given["DATABASE_PASSWORD"] = "d1"

    def settings(service: str) -> Settings:
        values = {
            name.lower(): re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], value)
            for name, value in environments[service].items()
        }
        return Settings.model_validate(values)

    api, owner = settings("api"), settings("migrate")
    assert api.asyncpg_dsn == owner.asyncpg_dsn == "postgresql://claude_agent_api:d1@postgres:5432/claude_agent_api"
    assert api.redis_url.get_secret_value() == "redis://:r1@redis:6379/0"
    assert owner.as_owner.asyncpg_dsn == "postgresql://postgres:p1@postgres:5432/claude_agent_api"
    # Empty, not left out: env_file hands all of .env over. A value and a file with one would be refused.
    files = {f"{name}_FILE" for name in ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")}
    for name in ("DATABASE_OWNER_URL", "POSTGRES_PASSWORD", *files):
        assert environments["api"][name] == ""
    assert all(environments["migrate"][name] == "" for name in files)
    assert "p1" not in str(api.model_dump())
    assert "POSTGRES_PASSWORD}" not in str(environments["api"])


def test_workspaces_lie_on_one_shared_volume_at_one_path(compose: dict[str, Any], dockerfile: str) -> None:
    api = compose["services"]["api"]
    path = api["environment"]["WORKSPACES_DIR"]
    assert f"workspaces:{path}" in api["volumes"]
    assert f"WORKSPACES_DIR={path}\n" in dockerfile
    assert f"VOLUME {path}\n" in dockerfile
    assert set(compose["volumes"]) == {"postgres", "workspaces"}


def test_every_service_is_bounded_and_nginx_knows_no_database(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert service["pids_limit"] > 0, name
        assert service["mem_limit"], name
        assert service.get("read_only", False) is (name != "postgres"), name
    networks = {name: set(service["networks"]) for name, service in services.items()}
    assert networks["nginx"].isdisjoint(networks["postgres"] | networks["redis"])
    assert networks["nginx"] & networks["api"]
    assert networks["postgres"] & networks["api"]
    # docs/deployment.md: the launcher of the agents lies there.
    assert any(re.match(r"/tmp:(.*,)?exec\b", mount) for mount in services["api"]["tmpfs"])
    headers = dict(nginx().inside("http").inside("server").directives["proxy_set_header"])
    assert headers["X-Forwarded-For"] == "$remote_addr", "FORWARDED_ALLOW_IPS believes it"
    assert services["nginx"]["healthcheck"]["test"][-1].endswith("/health/ready")


@dataclass
class Block:
    """One block of an nginx configuration: its directives by name, and the blocks in it."""

    directives: dict[str, list[list[str]]]
    blocks: list[tuple[list[str], Block]]

    def value(self, name: str) -> str:
        [arguments] = self.directives[name]
        return " ".join(arguments)

    def inside(self, *header: str) -> Block:
        [found] = [block for words, block in self.blocks if tuple(words) == header]
        return found


def nginx() -> Block:
    text = re.sub(r"(^|\s)#.*", "", (ROOT / "deploy" / "nginx.conf").read_text())
    stack = [Block({}, [])]
    words: list[str] = []
    for token in re.findall(r"'[^']*'|[{};]|(?:\$\{\w+\}|[^\s;{}'])+", text):
        if token == ";":
            stack[-1].directives.setdefault(words[0], []).append(words[1:])
            words = []
        elif token == "{":
            block = Block({}, [])
            stack[-1].blocks.append((words, block))
            stack.append(block)
            words = []
        elif token == "}":
            stack.pop()
        else:
            words.append(token)
    [root] = stack
    return root


def test_nginx_lets_streams_flow_and_live_long() -> None:
    server = nginx().inside("http").inside("server")
    assert server.value("proxy_buffering") == "off"
    assert server.value("gzip") == "off"
    assert server.value("proxy_http_version") == "1.1"
    assert server.value("proxy_read_timeout") == server.value("proxy_send_timeout") == "1h"
    assert server.value("proxy_pass_header") == "X-Accel-Buffering"


def test_nginx_passes_upgrades_and_request_ids_on() -> None:
    http = nginx().inside("http")
    headers = dict(http.inside("server").directives["proxy_set_header"])
    assert headers["Upgrade"] == "$http_upgrade"
    upgrade = http.inside("map", "$http_upgrade", headers["Connection"]).directives
    assert upgrade == {"default": [["upgrade"]], "''": [["''"]]}
    request_id = http.inside("map", "$http_x_request_id", headers["X-Request-ID"]).directives
    assert request_id == {"default": [["$http_x_request_id"]], "''": [["$request_id"]]}


def test_nginx_never_repeats_a_post_that_was_sent() -> None:
    assert nginx().inside("http").inside("server").value("proxy_next_upstream") == "error timeout"


def test_nginx_takes_slightly_larger_bodies_than_the_api_and_files_as_they_come() -> None:
    server = nginx().inside("http").inside("server")
    [(words, files)] = [(words, block) for words, block in server.blocks if words[:2] == ["location", "~"]]
    for setting, block in (("max_body_bytes", server), ("max_file_bytes", files)):
        limit, size = Settings.model_fields[setting].default, block.value("client_max_body_size")
        assert limit < int(size.removesuffix("k")) * 1024 < 1.15 * limit
    assert files.value("proxy_request_buffering") == "off"
    for path, routes in yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))["paths"].items():
        for route in routes.values():
            kinds = set(route.get("requestBody", {}).get("content", {}))
            assert not kinds - {"application/json"} or re.match(words[2], path), path


def test_nginx_balances_over_all_replicas_as_they_come_and_go(compose: dict[str, Any]) -> None:
    http = nginx().inside("http")
    upstream = http.inside("upstream", "api")
    [server] = upstream.directives["server"]
    assert server[:2] == [f"api:{PORT}", "resolve"]
    assert "api" in compose["services"]
    assert "zone" in upstream.directives
    assert http.value("resolver").startswith("127.0.0.11 valid=")
    assert http.inside("server").value("listen") == str(PORT)
    assert http.inside("server").inside("location", "=", "/metrics").value("return") == "404"
    version = re.fullmatch(r"nginx:(\d+)\.(\d+)", compose["services"]["nginx"]["image"])
    assert version is not None
    assert (int(version[1]), int(version[2])) >= (1, 28)


def test_the_guide_names_only_settings_that_exist() -> None:
    guide = (ROOT / "docs" / "deployment.md").read_text()
    known = {*spelling.known()}
    others = {"HOME", "TMPDIR", "SIGTERM", "SIGKILL", "POSTGRES_PASSWORD", "DATABASE_PASSWORD", "REDIS_PASSWORD", "ALL"}
    others |= {"AWS_ACCESS_KEY_ID", "HTTPS_PROXY"}
    assert set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", guide)) <= known | others


def test_the_lowest_version_that_a_dependency_may_have_is_the_one_that_the_tests_run_with() -> None:
    """A wheel's bounds promise that it works with them; older ones are tried by nobody."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {package["name"]: package["version"] for package in packages}
    for text in [*project["dependencies"], *project["optional-dependencies"]["local"]]:
        asked = Requirement(text)
        lowest = [bound.version for bound in asked.specifier if bound.operator in (">=", "==")]
        assert lowest == [locked[asked.name]], text


def test_the_instances_believe_nginx_alone_when_it_says_who_asks(compose: dict[str, Any]) -> None:
    services, [pool] = compose["services"], compose["networks"]["edge"]["ipam"]["config"]
    nginx = IPv4Address(services["nginx"]["networks"]["edge"]["ipv4_address"])
    assert services["api"]["environment"]["FORWARDED_ALLOW_IPS"] == str(nginx)
    others, subnet = IPv4Network(pool["ip_range"]), IPv4Network(pool["subnet"])
    assert nginx in subnet
    assert nginx not in others
    assert others.subnet_of(subnet)
    told = re.findall(r"proxy_set_header X-Forwarded-For (.+);", (ROOT / "deploy/nginx.conf").read_text())
    assert told == ["$remote_addr"]


def test_nginxs_own_health_check_asks_what_is_never_limited(compose: dict[str, Any]) -> None:
    check = compose["services"]["nginx"]["healthcheck"]["test"]
    assert check[-1] == f"http://127.0.0.1:{PORT}/health/ready"
