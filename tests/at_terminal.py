"""`curl`, with somebody at the terminal: what a call was answered is noted, and a stream that has shown enough is left.

Run by tests/test_examples.py in the place of curl. CURL: the real one; NOTES: the file of notes, one JSON document on
a line; EXAMPLE: what is noted as `example`. A stream that waits for a person goes on while the
next commands are typed, as in another terminal: what then comes is in `NOTES.stream` once it has ended.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import IO, Any, NoReturn

SECONDS = "40"
"""After which an answer does not come any more, on a busy machine too."""

ENOUGH_PIECES = 10
"""Deltas of a stream, after which its reader presses Ctrl-C."""

ASKED = (b"permission_request", b"question")


def main(arguments: list[str]) -> int:
    streams = any(re.fullmatch("-[a-zA-Z]*N[a-zA-Z]*", argument) for argument in arguments)
    with tempfile.NamedTemporaryFile("w+") as heads:
        command = [os.environ["CURL"], "--max-time", SECONDS, "-D", heads.name, *arguments]
        if os.path.sameopenfile(1, 2):  # Where both are a terminal it shows no progress.
            command.append("--no-progress-meter")
        curl = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert curl.stdout is not None
        text, last = follow(curl) if streams else (curl.communicate()[0], b"")
        if not streams:
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()
        note(text, re.findall(r"^HTTP/\S+ (\d+)", heads.read(), flags=re.MULTILINE), arguments)
        if last in ASKED:
            if os.fork() == 0:
                go_on(curl.stdout)
            os._exit(0)
        return 0 if last else curl.wait()


def follow(curl: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Show a stream while it is interesting. Returns what was shown, and with which event it was left, if it was."""
    shown, pieces, event = b"", 0, b""
    for line in curl.stdout or ():
        shown += line
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if line.startswith(b"event: "):
            event = line.split()[1]
            pieces += event == b"partial"
        elif not line.strip() and event in ASKED:
            return shown, event
        elif not line.strip() and pieces == ENOUGH_PIECES:
            curl.terminate()
            return shown, event
    return shown, b""


def go_on(stream: IO[bytes]) -> NoReturn:
    """Read it to its end, without a terminal."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for output in (1, 2):
        os.dup2(nowhere, output)
    path = os.environ["NOTES"] + ".stream"
    with open(path + ".part", "wb") as file:
        file.writelines(stream)
    os.rename(path + ".part", path)
    os._exit(0)


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
