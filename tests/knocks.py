"""What an agent tries of the network; the tests have its Bash run this, one line of words for each attempt.

Prints `words = outcome` for each: `ok`, the name of an error, or what a proxy answered.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import urlsplit

SECONDS = 5


def tcp(host: str, port: str) -> str:
    with socket.create_connection((host, int(port)), SECONDS):
        return "ok"


def stream(host: str, port: str, protocol: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(protocol)) as made:
        made.settimeout(SECONDS)
        made.connect((host, int(port)))
        return "ok"


def sent(host: str, port: str) -> str:
    """TCP Fast Open: a connection by the first bytes."""
    with socket.socket() as made:
        made.settimeout(SECONDS)
        made.sendto(b"hello", 0x20000000, (host, int(port)))
        return "ok"


def deferred(host: str, port: str) -> str:
    with socket.socket() as made:
        made.settimeout(SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, 30, 1)
        made.connect((host, int(port)))
        made.send(b"hello")
        return "ok"


def udp(host: str, port: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"\0" * 12, (host, int(port)))
        return "ok"


def family(number: str, kind: str) -> str:
    socket.socket(int(number), int(kind)).close()
    return "ok"


def unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("\0" + path[1:] if path.startswith("@") else path)
        return "ok"


def bind(port: str) -> str:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.2", int(port)))
        made.listen()
        return "ok"


def listen() -> str:
    with socket.socket() as made:
        made.listen()
        return "ok"


def get(url: str) -> str:
    """As programs do that know of proxies."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode().strip()}"
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        return str(error.reason)


def tunnel(host: str, port: str, *, heard: bool = False) -> str:
    """What the proxy says of a tunnel, or what is `heard` through it."""
    proxy = urlsplit(os.environ.get("HTTPS_PROXY", ""))
    if not proxy.hostname:
        return "no proxy"
    known = b64encode(f"agent:{proxy.password}".encode()).decode()
    with socket.create_connection((proxy.hostname, proxy.port or 0), SECONDS) as made:
        made.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nProxy-Authorization: Basic {known}\r\n\r\n".encode())
        said = b""
        while (b"\r\n\r\n" not in said or (heard and said.endswith(b"\r\n\r\n"))) and (piece := made.recv(4096)):
            said += piece
        head, _, rest = said.decode().partition("\r\n\r\n")
        return rest.strip() if heard else head.split("\r\n")[0].removeprefix("HTTP/1.1 ")


def hear(host: str, port: str) -> str:
    """The first words of a host that speaks first."""
    return tunnel(host, port, heard=True)


def serve(port: str) -> str:
    """A program of the agent's own, and the ways to it."""
    command = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(50):
                by_name = attempt(get, f"http://localhost:{port}/")
                if "Directory listing" in by_name or server.poll() is not None:
                    break
                time.sleep(0.1)
            direct = attempt(tcp, "127.0.0.1", port)
        finally:
            server.terminate()
    return f"direct {direct}, by name {'ok' if 'Directory listing' in by_name else by_name}"


def attempt(try_it: Callable[..., str], *words: str) -> str:
    try:
        return try_it(*words)
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


KINDS: dict[str, Callable[..., str]] = {
    made.__name__: made
    for made in (tcp, stream, sent, deferred, udp, family, unix, bind, listen, get, tunnel, hear, serve)
}

if __name__ == "__main__":
    for line in sys.argv[1:]:
        kind, *given = line.split()
        print(f"{line} = {attempt(KINDS[kind], *given)}", flush=True)
