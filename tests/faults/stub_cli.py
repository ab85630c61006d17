"""As much of the bundled CLI's stream-json protocol as the load's prompts need, in a few MB and without a model.

It knows what the demo model knows of these words: `say`, `stream N words every G ms`, `run COMMAND`, `recall`, `then`.
The rest is as the CLI does it: a turn begins with `init` and ends with `result`, what is said is mirrored for the
transcript, a command asks first unless the mode is `bypassPermissions`, an interrupt ends the turn, and a call that a
run was parked with is carried out at the start. It starts in place of the CLI, see `tests.faults.stub`: hence the
standard library only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections import deque
from uuid import uuid4

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

VERSION = "2.1.332"
NOT_ALLOWED = "The user does not want this."


class Interrupted(Exception):
    """The turn is to end."""


class Cli:
    """One process: one conversation, one turn at a time.

    Attributes:
        prompts: those of the conversation so far.
    """

    def __init__(self, words: list[str]) -> None:
        named = dict(_named(words))
        self._mode = named.get("--permission-mode") or "default"
        self._model = named.get("--model") or "stub"
        self._session = named.get("--resume") or named.get("--session-id") or str(uuid4())
        projects = os.path.join(os.environ["CLAUDE_CONFIG_DIR"], "projects")
        found = os.listdir(projects) if os.path.isdir(projects) else []
        self._file = os.path.join(projects, found[0] if found else "-", f"{self._session}.jsonl")
        self._last: str | None = None
        self._inbox = b""
        self._waiting: deque[dict[str, Any]] = deque()
        self._answers: dict[str, dict[str, Any]] = {}
        self._interrupted = self._over = self._working = False
        self.prompts: list[str] = []
        self._deferred = self._read_history() if "--resume" in named else None

    def run(self) -> None:
        """Until nobody says anything any more."""
        while not self._over:
            if not self._waiting:
                self._hear(None)
                continue
            asked = self._waiting.popleft()
            if asked["type"] == "user":
                self._turn(asked["uuid"], _text_of(asked["message"]["content"]))
            elif self._deferred is not None:
                call, self._deferred = self._deferred, None
                self._turn(None, "", call)

    # --- a turn --------------------------------------------------------------------------------------------------

    def _turn(self, uuid: str | None, prompt: str, call: dict[str, Any] | None = None) -> None:
        began, self._interrupted, self._working = time.monotonic(), False, True
        uuids = [uuid] if uuid else []
        if uuid:
            self._keep("user", {"role": "user", "content": prompt}, uuid=uuid, promptSource="sdk")
        self._tell(
            "system",
            subtype="init",
            cwd=os.getcwd(),
            tools=["Bash"],
            mcp_servers=[],
            model=self._model,
            permissionMode=self._mode,
            slash_commands=[],
            skills=[],
            agents=[],
            claude_code_version=VERSION,
            user_message_uuids=uuids,
        )
        text, failed = "", True
        try:
            text = self._call(call["command"], call["id"]) if call else self._reply(prompt)
            failed = False
        except Interrupted:
            self._keep("user", {"role": "user", "content": "[Request interrupted by user]"})
        if uuid:
            self.prompts.append(prompt)
        self._working = False
        took = int((time.monotonic() - began) * 1000)
        self._tell(
            "result",
            subtype="error_during_execution" if failed else "success",
            is_error=failed,
            terminal_reason="aborted_streaming" if failed else "completed",
            result=None if failed else text,
            duration_ms=took,
            duration_api_ms=took,
            num_turns=1,
            stop_reason="end_turn",
            total_cost_usd=0.0,
            usage={"input_tokens": 1, "output_tokens": 1},
            modelUsage={},
            permission_denials=[],
            user_message_uuids=uuids,
        )

    def _reply(self, prompt: str) -> str:
        return "\n".join(map(self._step, prompt.split(" then ")))

    def _step(self, step: str) -> str:
        verb, _, rest = step.partition(" ")
        if verb == "stream":
            count, gap = int(rest.split()[0]), int(rest.split()[3])
            return self._say([f"word{number} " for number in range(1, count + 1)], gap / 1000)
        if verb == "run":
            return self._call(rest, None)
        if verb == "recall":
            listed = "".join(f"\n{number}. {before}" for number, before in enumerate(self.prompts, 1))
            return self._say(["you said:" + listed])
        return self._say([rest])

    def _say(self, pieces: list[str], gap: float = 0.0) -> str:
        self._tell("stream_event", event={"type": "message_start", "message": {"id": "msg"}})
        self._block(0, {"type": "text", "text": ""})
        for piece in pieces:
            delta = {"type": "text_delta", "text": piece}
            self._tell("stream_event", event={"type": "content_block_delta", "index": 0, "delta": delta})
            self._wait(lambda: False, gap)
        text = "".join(pieces)
        self._message([{"type": "text", "text": text}])
        return text

    def _block(self, index: int, block: dict[str, Any]) -> None:
        self._tell("stream_event", event={"type": "content_block_start", "index": index, "content_block": block})

    def _call(self, command: str, call_id: str | None) -> str:
        """Carry a command out, if that is allowed. `call_id`: of one that has been shown before."""
        given = {"command": command}
        if call_id is None:
            call_id = f"toolu_{uuid4().hex[:24]}"
            self._message([{"type": "tool_use", "id": call_id, "name": "Bash", "input": given}])
        output = self._command(command) if self._may(call_id, given) else NOT_ALLOWED
        result = {"type": "tool_result", "tool_use_id": call_id, "content": output, "is_error": output == NOT_ALLOWED}
        message, uuid = {"role": "user", "content": [result]}, str(uuid4())
        self._keep("user", message, uuid=uuid)
        self._tell("user", message=message, parent_tool_use_id=None, uuid=uuid)
        return self._say([f"the tool answered: {output}"])

    def _may(self, call_id: str, given: dict[str, Any]) -> bool:
        if self._mode == "bypassPermissions":
            return True
        asked = uuid4().hex
        request = {"subtype": "can_use_tool", "tool_name": "Bash", "input": given, "tool_use_id": call_id}
        self._write({"type": "control_request", "request_id": asked, "request": request})
        try:
            self._wait(lambda: asked in self._answers, None)
        except Interrupted:
            self._write({"type": "control_cancel_request", "request_id": asked})
            raise
        answer = self._answers.pop(asked).get("response") or {}
        if answer.get("interrupt"):
            raise Interrupted
        return answer.get("behavior") == "allow"

    def _command(self, command: str) -> str:
        reading, writing = os.pipe()
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", command],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ],
            setpgroup=0,
        )
        os.close(writing)
        said = b""
        try:
            while True:
                self._wait(lambda: bool(select.select([reading], [], [], 0)[0]), None, reading)
                if not (more := os.read(reading, 65536)):
                    return said.decode(errors="replace")
                said += more
        except Interrupted:
            os.killpg(pid, signal.SIGKILL)
            raise
        finally:
            os.close(reading)
            os.waitpid(pid, 0)

    # --- what is heard -------------------------------------------------------------------------------------------

    def _wait(self, until: Callable[[], bool], seconds: float | None, *more: int) -> None:
        """Hear what comes meanwhile. Raises Interrupted."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            if self._interrupted or self._over:
                raise Interrupted
            left = None if end is None else max(end - time.monotonic(), 0)
            if until():
                return
            self._hear(left, *more)
            if left == 0:
                return

    def _hear(self, seconds: float | None, *more: int) -> None:
        ready, _, _ = select.select([0, *more], [], [], seconds)
        if 0 not in ready:
            return
        read = os.read(0, 65536)
        self._over = not read
        *lines, self._inbox = (self._inbox + read).split(b"\n")
        for line in filter(None, lines):
            self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        if told["type"] == "user":
            self._waiting.append(told)
        elif told["type"] == "control_response":
            self._answers[told["response"]["request_id"]] = told["response"]
        elif told["type"] == "control_request":
            request = told["request"]
            self._interrupted |= self._working and request["subtype"] == "interrupt"
            self._mode = request.get("mode") or self._mode
            self._model = request.get("model") or self._model
            answer = {"subtype": "success", "request_id": told["request_id"], "response": {"commands": []}}
            self._write({"type": "control_response", "response": answer})
            if request["subtype"] == "initialize" and self._deferred is not None:
                self._waiting.append(told)

    # --- what is told --------------------------------------------------------------------------------------------

    def _message(self, content: list[dict[str, Any]]) -> None:
        message: dict[str, Any] = {"id": f"msg_{uuid4().hex[:20]}", "type": "message", "role": "assistant"}
        message |= {"model": self._model, "content": content, "usage": {"input_tokens": 1, "output_tokens": 1}}
        uuid = str(uuid4())
        self._keep("assistant", message, uuid=uuid)
        self._tell("assistant", message=message, parent_tool_use_id=None, uuid=uuid)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._write({"type": kind, "uuid": str(uuid4()), "session_id": self._session, **fields})

    def _keep(self, kind: str, message: dict[str, Any], uuid: str = "", **fields: Any) -> None:
        """For the transcript."""
        now = time.time()
        entry = {
            "parentUuid": self._last,
            "isSidechain": False,
            "cwd": os.getcwd(),
            "sessionId": self._session,
            "version": VERSION,
            "type": kind,
            "message": message,
            "uuid": uuid or str(uuid4()),
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z",
            **fields,
        }
        self._last = str(entry["uuid"])
        self._write({"type": "transcript_mirror", "filePath": self._file, "entries": [entry]})

    def _write(self, told: dict[str, Any]) -> None:
        line = json.dumps(told).encode() + b"\n"
        while line:
            line = line[os.write(1, line) :]

    def _read_history(self) -> dict[str, Any] | None:
        """Learn the conversation; returns the call with which it is to go on, if there is one."""
        deferred = None
        with open(self._file, encoding="utf-8") as file:
            for entry in map(json.loads, file):
                self._last = entry.get("uuid") or self._last
                if entry["type"] == "user" and "promptSource" in entry:
                    self.prompts.append(_text_of(entry["message"]["content"]))
                if (what := entry.get("attachment") or {}).get("type") == "hook_deferred_tool":
                    deferred = {"id": what["toolUseID"], "command": what["toolInput"]["command"]}
        return deferred


def _named(words: list[str]) -> Iterator[tuple[str, str]]:
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, is_, value = word.partition("=")
        if name.startswith("--"):
            yield name, value if is_ else after


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else " ".join(block.get("text", "") for block in content)


if __name__ == "__main__":
    Cli(sys.argv[1:]).run()
