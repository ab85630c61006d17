"""`curl`, with somebody at the terminal: what a call was answered is noted, and a stream that has shown enough is left.

Run by tests/test_examples.py in the place of curl. CURL: the real one; NOTES: the file of notes, one JSON document on
a line; EXAMPLE: what is noted as `example`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

SECONDS = "40"
"""After which an answer does not come any more, on a busy machine too."""

ENOUGH_PIECES = 10
"""Deltas of a stream, after which its reader presses Ctrl-C. Also pressed where a person is asked."""


def main(arguments: list[str]) -> int:
    streams = any(re.fullmatch("-[a-zA-Z]*N[a-zA-Z]*", argument) for argument in arguments)
    with tempfile.NamedTemporaryFile("w+") as heads:
        command = [os.environ["CURL"], "--max-time", SECONDS, "-D", heads.name, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            text, left = (follow if streams else take)(curl)
        note(text, re.findall(r"^HTTP/\S+ (\d+)", heads.read(), flags=re.MULTILINE), arguments)
    return 0 if left else curl.returncode


def take(curl: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
    text = curl.communicate()[0]
    sys.stdout.buffer.write(text)
    return text, False


def follow(curl: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
    """Show a stream while it is interesting. Returns what was shown, and whether it was left."""
    shown, pieces, event = b"", 0, b""
    for line in curl.stdout or ():
        shown += line
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if line.startswith(b"event: "):
            event = line.split()[1]
            pieces += event == b"partial"
        elif not line.strip() and (pieces == ENOUGH_PIECES or event in (b"permission_request", b"question")):
            curl.terminate()
            return shown, True
    return shown, False


def note(text: bytes, statuses: list[str], arguments: list[str]) -> None:
    found = re.findall(rb"^event: error\ndata: (.*)", text, flags=re.MULTILINE)
    if text.startswith(b'{"error":'):
        found.append(json.dumps(json.loads(text)["error"]).encode())
    noted: dict[str, Any] = {"example": os.environ["EXAMPLE"], "status": int(statuses[-1]) if statuses else 0}
    noted |= {"errors": [json.loads(error)["code"] for error in found], "arguments": arguments}
    with open(os.environ["NOTES"], "a", encoding="utf-8") as notes:
        notes.write(json.dumps(noted) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
