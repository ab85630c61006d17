"""The table of attacks, what stops each, and how one is tried."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
"""What an attacker knows; see `tests.hostile.arena`."""

LAYERS = {
    "files": "Landlock: files",
    "scopes": "Landlock: signals and abstract sockets (ABI 6)",
    "capabilities": "it has none that is needed: where Landlock is, root's are dropped",
    "dropped": "it has fewer than the attacked: the same, of root",
    "calls": "seccomp",
    "guard": "the guard itself, whatever is off",
    "namespaces": "namespaces of its own",
    "ports": "the network's rules of ports: none below 1024, none of the fleet's",
    "protocols": "the network's filter: TCP, and UDP in `open`",
    "limited": "a network of `limited`: the gateway's and the proxy's ports alone",
    "silent": "a network of `model_only`: nothing listens",
    "unix": "a network of `model_only`, or AGENT_UNIX_SOCKETS=off",
    "limits": "limits on what a session's processes take",
    "quota": "a share of the disk",
}
"""What can stop an attack: name → what it is."""

SECONDS = 10.0
"""For one attack."""


class Held(Exception):
    """It came to nothing, in a way that raises no OSError."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        what: what the attacker wants, in words.
        stopped_by: names of LAYERS, each of which stops it.
        by_kernel: whether there are kernels, or machines, that let nobody do it, confined or not.
        run: tries it. Returns what is seen when it succeeds; "" or an OSError when it came to nothing.
    """

    what: str
    stopped_by: frozenset[str]
    by_kernel: bool
    run: Callable[[Facts], object]


TABLE: dict[str, Attack] = {}


def add(what: str, run: Callable[[Facts], object], *stopped_by: str, by_kernel: bool = False) -> None:
    """Add an attack to the table."""
    assert what not in TABLE, what
    assert set(stopped_by) <= set(LAYERS), stopped_by
    TABLE[what] = Attack(what, frozenset(stopped_by), by_kernel, run)


def attack(
    what: str, *stopped_by: str, by_kernel: bool = False
) -> Callable[[Callable[[Facts], object]], Callable[[Facts], object]]:
    """Add a function to the table."""

    def adding(run: Callable[[Facts], object]) -> Callable[[Facts], object]:
        add(what, run, *stopped_by, by_kernel=by_kernel)
        return run

    return adding


def tried(one: Attack, facts: Facts) -> dict[str, Any]:
    """Try it in a process of its own: `{"seen": what was seen}`, `{"held": why}`, `{"broken": what is wrong}`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setpgid(0, 0)
        os.write(writer, json.dumps(_outcome(one, facts)).encode())
        os._exit(0)
    os.close(writer)
    said, until = b"", time.monotonic() + SECONDS
    while select.select([reader], [], [], max(0, until - time.monotonic()))[0]:
        if not (more := os.read(reader, 65536)):
            break
        said += more
        if len(more) < 65536:
            break
    os.close(reader)
    for target in (-child, child):
        try:
            os.kill(target, signal.SIGKILL)
        except OSError:
            continue
    _, status = os.waitpid(child, 0)
    if said:
        found: dict[str, Any] = json.loads(said)
        return found
    late = time.monotonic() >= until
    return {"held": "took too long" if late else f"killed by signal {os.WTERMSIG(status)}"}


def _outcome(one: Attack, facts: Facts) -> dict[str, Any]:
    try:
        seen = one.run(facts)
        return {"seen": str(seen)[:200]} if seen else {"held": "nothing was seen"}
    except (OSError, Held) as error:
        return {"held": f"{type(error).__name__}: {error}"[:200]}
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return {"broken": traceback.format_exc()[-800:]}
