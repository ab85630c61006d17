"""`scripts/faults`: faults by seed, and whether everything that is promised held."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import orjson

from tests.bench.machine import allow_many_sockets
from tests.faults.checker import left_over, violations
from tests.faults.faults import Trouble
from tests.faults.load import Broken, Load
from tests.faults.stage import Stage

CLIENTS = 5


@dataclass
class Found:
    """How one seed went."""

    seed: int
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    operations: int = 0
    repeated: int = 0
    prompts: int = 0
    events: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


async def run(seed: int, seconds: float, *, clients: int = CLIENTS, report: Path | None = None) -> Found:
    """Let things go wrong for so many seconds, and check what is left. `report`: where to write a bad history."""
    found = Found(seed)
    began = time.monotonic()
    async with Stage.opened(seed) as stage, stage.client() as client:
        load, trouble = Load(stage, client, Random(seed + 1)), Trouble(stage)
        loop = asyncio.get_running_loop()
        users = [asyncio.create_task(load.client()) for _ in range(clients)]
        try:
            await asyncio.sleep(3)
            troubles = [asyncio.create_task(trouble.go_on(loop.time() + seconds)) for _ in range(2)]
            await asyncio.gather(*troubles)
            await stage.well()
            load.end()
            for told in await asyncio.gather(*users, return_exceptions=True):
                if isinstance(told, BaseException):
                    found.violations.append(str(told) if isinstance(told, Broken) else repr(told))
            await load.settle()
            found.violations += await violations(stage, load)
            found.violations += await left_over(stage, load)
        except Exception as error:
            found.violations.append(str(error) if isinstance(error, Broken) else traceback.format_exc())
        finally:
            for user in users:
                user.cancel()
            await load.close()
        found.seconds, found.faults = time.monotonic() - began, dict(sorted(trouble.done.items()))
        _count(found, load)
        if found.violations and report is not None:
            _write(report, found, load, trouble)
            for host in stage.hosts:
                (report.parent / f"{report.stem}-{host.number}.log").write_bytes(host.instance.log.read_bytes())
    return found


def _count(found: Found, load: Load) -> None:
    found.operations, found.repeated = load.operations, len(load.refused)
    prompts = [prompt for session in load.sessions for prompt in session.prompts]
    found.prompts = len(prompts)
    found.events = sum(len(reader.order) for session in load.sessions for reader in session.readers)
    for prompt in prompts:
        how = str(prompt.run.get("status") or "of a deleted session")
        code = (prompt.run.get("error") or {}).get("code")
        how += f" {code}" if code else ""
        found.outcomes[how] = found.outcomes.get(how, 0) + 1


def _write(report: Path, found: Found, load: Load, trouble: Trouble) -> None:
    sessions = [
        {
            "id": session.id,
            "deleted": session.deleted,
            "prompts": [vars(prompt) for prompt in session.prompts],
            "readers": [{"name": r.name, "order": r.order, "faults": r.faults} for r in session.readers],
        }
        for session in load.sessions
    ]
    told = {"seed": found.seed, "violations": found.violations, "faults": trouble.log, "sessions": sessions}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2, default=str))


def tell(found: Found) -> None:
    """Print it for people."""
    print(
        f"seed {found.seed}: {sum(found.faults.values())} faults in {found.seconds:.0f} s, {found.operations} answers,"
        f" {found.repeated} asked again, {found.prompts} prompts, {found.events} events read,"
        f" {len(found.violations)} violations"
    )
    print("  faults: " + ", ".join(f"{name} {count}" for name, count in found.faults.items()))
    print("  prompts: " + ", ".join(f"{name} {count}" for name, count in sorted(found.outcomes.items())))
    for violation in found.violations:
        print(f"  VIOLATION {violation}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each seed (5)")
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="which faults, when and for how long (1)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"applications at once ({CLIENTS})")
    where = "where histories go that broke a promise (.data/faults)"
    parser.add_argument("--report", type=Path, default=Path(".data/faults"), help=where)
    asked = parser.parse_args()
    allow_many_sockets()
    bad = 0
    for seed in asked.seed:
        report = asked.report / f"seed-{seed}.json"
        found = asyncio.run(run(seed, asked.minutes * 60, clients=asked.clients, report=report))
        tell(found)
        bad += bool(found.violations)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
