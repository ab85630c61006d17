"""A real git server on loopback: git's own HTTP backend behind a small CGI server, and repositories in it."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

USER, TOKEN = "x-access-token", "t0ken-of-the-tests"


class GitServer:
    """Repositories below a directory. Those in `private/` want USER and TOKEN; `moved/` redirects to another host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, str | None]] = []
        self.port = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def repository(
        self,
        path: str,
        files: dict[str, str],
        links: dict[str, str] | None = None,
        branches: dict[str, dict[str, str]] | None = None,
    ) -> str:
        """Make one with one commit, and one more in each of `branches`, with the files of that; returns its URL."""
        work = self.root / f"{path}.work"
        work.mkdir(parents=True)
        for name, text in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(text)
        for name, target in (links or {}).items():
            (work / name).symlink_to(target)
        _git(work, "init", "--quiet", "--initial-branch=main")
        _git(work, "add", "--all")
        _git(work, "commit", "--quiet", "--allow-empty", "--message=first")
        _git(work, "branch", "other")
        for branch, its_files in (branches or {}).items():
            _git(work, "checkout", "--quiet", "-b", branch, "main")
            for name, text in its_files.items():
                (work / name).write_text(text)
            _git(work, "add", "--all")
            _git(work, "commit", "--quiet", "--allow-empty", f"--message={branch}")
        _git(work, "checkout", "--quiet", "main")
        _git(work, "clone", "--quiet", "--bare", ".", str(self.root / path))
        return self.url(path)


def _git(where: Path, *arguments: str) -> None:
    who = {f"GIT_{w}_{k}": "tester" for w in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")}
    env = {**os.environ, **who, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", *arguments], cwd=where, check=True, env=env, capture_output=True)


@contextmanager
def git_serving(root: Path) -> Iterator[GitServer]:
    server = GitServer(root)

    class Cgi(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            server.asked.append((self.path, given))
            wanted = "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
            if self.path.startswith("/private/") and given != wanted:
                self._refuse(401, "WWW-Authenticate", 'Basic realm="git"')
            elif self.path.startswith("/plain/"):
                self._refuse(301, "Location", self.path.replace("/plain/", "/plain.git/"))
            elif self.path.startswith("/moved/"):
                self._refuse(
                    302,
                    "Location",
                    f"http://localhost:{server.port}/elsewhere/plain.git{self.path.partition('.git')[2]}",
                )
            else:
                self._serve()

        do_POST = do_GET  # noqa: N815

        def _refuse(self, status: int, name: str, value: str) -> None:
            self.send_response(status)
            self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            }
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in {**fields, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Cgi) as http:
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
