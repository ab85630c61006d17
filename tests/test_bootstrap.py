"""What scripts/_bootstrap trusts: the system's certificates, and one release of uv."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.dev_process import real_uv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BOUND = 150
"""Seconds for a first start, on a busy machine too."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with its key, and the bundle of a system that trusts its issuer."""
    now, keys = datetime.now(UTC), [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("issuer", "proxy")]

    def made(which: int, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder().issuer_name(names[0]).subject_name(names[which])
        builder = builder.public_key(keys[which].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    bundle, both = folder / "system.pem", folder / "proxy.pem"
    bundle.write_bytes(made(0, x509.BasicConstraints(ca=True, path_length=None)))
    both.write_bytes(secret + made(1, x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])))
    return both, bundle


def wheel(folder: Path, name: str, files: dict[str, str]) -> str:
    """A wheel with these files in the package index below `folder`. Returns its hash."""
    path = folder / "files" / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{file},sha256={digest},{len(text.encode())}\n")
    files[f"{info}/RECORD"] = "".join(rows) + f"{info}/RECORD,,\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16  # an ordinary file, executable
            archive.writestr(entry, text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    page = folder / "simple" / name / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><a href="/files/{path.name}#sha256={digest}">{path.name}</a>')
    return digest


@dataclass
class Index:
    """A package index behind a proxy that presents a certificate of its own."""

    url: str
    bundle: Path
    uv_hash: str
    asked: list[str]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("index")
    both, bundle = certificate(folder)
    # What pip fetches stands for uv, and runs the real one.
    uv_hash = wheel(folder, "uv", {"uv-1.0.data/scripts/uv": f'#!/bin/sh\nexec "{real_uv()}" "$@"\n'})
    wheel(folder, "tiny", {"tiny.py": "WORD = 'installed'\n"})
    asked: list[str] = []

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that does not trust us hangs up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Index(f"https://127.0.0.1:{server.server_port}/simple", bundle, uv_hash, asked)
    finally:
        server.shutdown()
        server.server_close()


def clone(folder: Path, index: Index) -> Path:
    """A clean clone of a project with our scripts/_bootstrap and one dependency, which only the index has."""
    scripts = folder / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/_bootstrap", scripts)
    (scripts / "uv.txt").write_text(f"uv==1.0 --hash=sha256:{index.uv_hash}\n")
    (scripts / "try").write_text(
        '#!/bin/sh\nset -eu\n. "${0%/*}/_bootstrap"\nexec "$venv/bin/python" -c "import tiny; print(tiny.WORD)"\n'
    )
    (scripts / "try").chmod(0o755)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "ours"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["tiny"]\n'
        f'[[tool.uv.index]]\nurl = "{index.url}"\ndefault = true\n'
    )
    environment = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(index.bundle), "UV_SYSTEM_CERTS": "true"}
    locked = [real_uv(), "lock", "--python", sys.executable, "--cache-dir", str(folder / "cache")]
    done = subprocess.run(locked, cwd=folder, env=environment, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "cache")
    return folder


def start(folder: Path, index: Index, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with a PATH that has the system's programs and Python, but no uv; with an empty HOME."""
    path = folder / "bin"
    path.mkdir(exist_ok=True)
    if not (path / "python3").exists():
        (path / "python3").symlink_to(sys.executable)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    clean = {
        "PATH": f"{path}:/usr/bin:/bin",
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
    }
    return subprocess.run(
        [folder / "scripts/try"],
        cwd=folder,
        env={**clean, "PIP_INDEX_URL": index.url, "PIP_RETRIES": "0", "UV_HTTP_RETRIES": "0", **environment},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )


def test_a_first_start_works_behind_a_proxy_that_only_the_system_trusts(tmp_path: Path, index: Index) -> None:
    folder = clone(tmp_path / "clone", index)
    index.asked.clear()
    done = start(folder, index, SSL_CERT_FILE=str(index.bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "installed\n"
    assert [path for path in index.asked if path.startswith("/files/uv-")], "pip fetched uv from there"
    assert [path for path in index.asked if path.startswith("/files/tiny-")], "and uv the rest"


def test_a_proxy_that_the_system_does_not_trust_is_refused(tmp_path: Path, index: Index) -> None:
    folder = clone(tmp_path / "clone", index)
    index.asked.clear()
    done = start(folder, index)
    assert done.returncode == 1
    assert "cannot fetch uv" in done.stderr
    assert index.asked == []


def test_one_release_of_uv_is_pinned_with_the_hashes_of_all_its_files() -> None:
    text = (ROOT / "scripts/uv.txt").read_text()
    assert len(re.findall(r"^uv==\d+\.\d+\.\d+ \\$", text, re.MULTILINE)) == 1
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) > 10
