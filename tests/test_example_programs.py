"""The programs of examples/ do what their pages say, against what `scripts/dev` starts."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import browser
from tests.dev_process import BOUND, OURS, ROOT, Dev
from tests.free_ports import free_ports
from tests.git_server import GitServer, git_serving

EXAMPLES = ROOT / "examples"
CHROMIUM = browser.program()


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_serving(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, git: GitServer) -> Iterator[dict[str, str]]:
    """What a reader of examples/README.md has in the environment."""
    dev = Dev(tmp_path_factory.mktemp("programs"), REPOSITORY_HOSTS="127.0.0.1")
    try:
        dev.ready()
        url, clean = f"http://127.0.0.1:{dev.port}", {n: value for n, value in os.environ.items() if n not in OURS}
        yield {**clean, "CLAUDE_AGENT_API_URL": url, "CLAUDE_AGENT_API_KEY": dev.key()}
    finally:
        dev.process.terminate()
        dev.exit_code()


@contextmanager
def running(words: list[str], said_when_ready: str, output: Path, **how: Any) -> Iterator[None]:
    """A program that serves, from when it says that it does."""
    with output.open("w") as file, subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, **how) as process:
        try:
            until(lambda: said_when_ready in output.read_text() or process.poll() is not None)
            assert process.poll() is None, output.read_text()
            yield
        finally:
            process.terminate()


def until(happened: Any) -> None:
    deadline = time.monotonic() + BOUND
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


@pytest.fixture
def app(request: pytest.FixtureRequest, env: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of `app.py` in the directory that the test names."""
    port = free_ports(1)
    words = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    with running(words, "Uvicorn running", tmp_path / "app", cwd=EXAMPLES / request.param, env=env):
        yield f"http://127.0.0.1:{port}"


def told(answer: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """Position, name and data of each event, as they come."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


# --- fastapi-chat --------------------------------------------------------------------------------------------------

ADA, BOB = ({"Authorization": f"Bearer token-of-{name}"} for name in ("ada", "bob"))


def chat(url: str, user: dict[str, str], **message: str) -> list[tuple[str, Any]]:
    with httpx.stream("POST", f"{url}/chat", headers=user, json=message, timeout=BOUND) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
        return [(name, data) for _, name, data in told(answer)]


@pytest.mark.parametrize("app", ["fastapi-chat"], indirect=True)
def test_the_users_of_an_application_talk_to_an_agent_each_in_their_own_conversations(app: str) -> None:
    [first, *pieces, last] = chat(app, ADA, text="remember my name is Ada")
    assert (first[0], last) == ("conversation", ("done", None))
    assert "".join(text for _, text in pieces) == "[demo model, scripted] I will remember: my name is Ada"
    assert len(pieces) > 1, "it has not streamed"
    again = chat(app, ADA, text="recall", conversation=first[1])
    assert "my name is Ada" in "".join(text for name, text in again if name == "text")

    assert httpx.get(f"{app}/conversations", headers=ADA).json()[0]["conversation"] == first[1]
    assert httpx.get(f"{app}/conversations", headers=BOB).json() == []
    assert httpx.get(f"{app}/conversations").status_code == 401
    for stranger, conversation, status in ((BOB, first[1], 404), (ADA, "no-such", 404), ({}, first[1], 401)):
        message = {"text": "recall", "conversation": conversation}
        assert httpx.post(f"{app}/chat", headers=stranger, json=message).status_code == status
    assert chat(app, ADA, text="fail with 400")[-1][0] == "failed"


# --- approvals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["approvals"], indirect=True)
def test_a_run_waits_for_the_decision_of_a_person_and_a_stream_that_was_cut_goes_on(app: str) -> None:
    with httpx.Client(base_url=app, timeout=BOUND) as person:
        run = person.post("/tasks", json={"text": "run touch made.txt && echo made"}).json()["run"]
        with person.stream("GET", f"/runs/{run}/events") as stream:
            position, data = next((at, data) for at, name, data in told(stream) if name == "permission_request")
        assert data["input"]["command"] == "touch made.txt && echo made"
        decision = {"session_id": data["session_id"], "request_id": data["request_id"], "allow": False}
        assert person.post("/decisions", json=decision).status_code == 200
        late = person.post("/decisions", json=decision | {"allow": True})
        assert late.status_code == 409, late.text
        with person.stream("GET", f"/runs/{run}/events", headers={"Last-Event-ID": position}) as stream:
            rest = [(name, data) for _, name, data in told(stream)]
    assert rest[0][0] == "action_resolved"
    assert rest[-1][0] == "done"
    assert "A person has said no." in dict(rest)["result"]["result"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("app", ["approvals"], indirect=True)
async def test_a_person_allows_it_on_the_page(app: str) -> None:
    assert CHROMIUM is not None
    async with browser.running(CHROMIUM) as chromium, chromium.page(f"{app}/") as page:
        await page.press("Start")
        await page.press("Allow")
        await page.when("document.querySelector('main').innerText.includes('the tool answered: made')")
        assert "Decided: allow" in await page.text("main")
        assert [asked["url"] for asked in page.requests if not asked["url"].startswith(app)] == []


# --- pull-requests -------------------------------------------------------------------------------------------------


def test_a_change_is_reviewed_and_the_exit_code_says_how(git: GitServer, env: dict[str, str]) -> None:
    def review(url: str, found: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        prompt = f"run git diff --no-index before after then answer by schema {json.dumps(found)}"
        words = [sys.executable, str(EXAMPLES / "pull-requests/review.py"), url, "--head", "topic", "--prompt", prompt]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=BOUND, check=False)

    url = git.repository("shop", {"app.py": "total = 1\n"}, branches={"topic": {"app.py": "total = 2\n"}})
    finding = {"file": "app.py", "line": 1, "problem": "It is one too many."}
    wrong = review(url, {"verdict": "request_changes", "findings": [finding]})
    assert (wrong.returncode, wrong.stdout) == (1, "app.py:1: It is one too many.\nrequest_changes\n"), wrong
    with httpx.Client(headers={"X-API-Key": env["CLAUDE_AGENT_API_KEY"]}) as client:
        [session] = client.get(f"{env['CLAUDE_AGENT_API_URL']}/api/v1/sessions?metadata.head=topic").json()["data"]
        said = client.get(f"{env['CLAUDE_AGENT_API_URL']}/api/v1/sessions/{session['session_id']}/messages").text
    assert "+total = 2" in said, "the agent has not seen the change"
    assert review(url, {"verdict": "approve", "findings": []}).returncode == 0
    nowhere = review("https://example.org/none", {"verdict": "approve", "findings": []})
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "REPOSITORY_HOSTS" in nowhere.stderr


# --- tenants -------------------------------------------------------------------------------------------------------


def test_customers_come_are_told_of_and_go(env: dict[str, str], tmp_path: Path) -> None:
    port, said, api = free_ports(1), tmp_path / "listener", f"{env['CLAUDE_AGENT_API_URL']}/api/v1"
    given = {**env, "CUSTOMERS": str(tmp_path / "customers.json"), "HOOKS_URL": f"http://127.0.0.1:{port}"}
    program = [sys.executable, str(EXAMPLES / "tenants/tenants.py")]

    def told(*words: str) -> str:
        return subprocess.run([*program, *words], env=given, capture_output=True, text=True, check=True).stdout

    with running([*program, "listen", str(port)], "listens on port", said, env=given):
        assert told("add", "globex").startswith("globex is a tenant")
        assert stat.S_IMODE(Path(given["CUSTOMERS"]).stat().st_mode) == 0o600
        customer = json.loads(Path(given["CUSTOMERS"]).read_text())["globex"]
        with httpx.Client(base_url=api, headers={"X-API-Key": customer["key"]}, timeout=BOUND) as backend:
            limits = {one["name"]: one["limit"] for one in backend.get("limits").json()["data"]}
            assert limits["concurrent_runs"] == 5
            run = backend.post("query/single", json={"prompt": "say hello"}).json()["run_id"]
            until(lambda: f"globex: run.succeeded {run}\n" in said.read_text())
            forged = {"webhook-id": "1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
            hooks = f"http://127.0.0.1:{port}"
            assert httpx.post(f"{hooks}/globex", headers=forged, content=b"{}").status_code == 401
            assert httpx.post(f"{hooks}/nobody", headers=forged, content=b"{}").status_code == 404
            assert told("suspend", "globex") == "globex is suspended\n"
            until(lambda: backend.get("whoami").status_code == 403)
            assert told("remove", "globex").startswith("globex: delet")
            until(lambda: backend.get("whoami").status_code == 401)
    assert json.loads(Path(given["CUSTOMERS"]).read_text()) == {}
