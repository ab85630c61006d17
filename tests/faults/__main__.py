"""`scripts/faults`: faults by seed, and whether everything that is promised held."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import orjson

from tests.bench.machine import allow_many_sockets
from tests.faults.faults import FAULTS, Trouble, are_harmless
from tests.faults.history import Broken
from tests.faults.load import PATIENCE, RUN_PATIENCE, Load
from tests.faults.remains import delete_all, left_over, violations
from tests.faults.stage import LONG_LEASE_SECONDS, WELL_SECONDS, Stage

ROOT = Path(__file__).parents[2]
CLIENTS, STUBS, CRAWLERS = 4, 8, 2
END_SECONDS = 2 * RUN_PATIENCE
"""For a client to end what it is at: the slowest answer, the slowest run, and a reader that is far behind."""


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        clients: applications at once whose agents are the CLI; `stubs`: those whose agents are the stub.
        names: only these faults, see Trouble.
        previous: see Stage.
    """

    seed: int
    seconds: float
    clients: int = CLIENTS
    stubs: int = STUBS
    names: Sequence[str] = ()
    previous: Path | None = None


@dataclass
class Found:
    """How one seed went."""

    plan: Plan
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    operations: int = 0
    repeated: int = 0
    prompts: int = 0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


async def run(plan: Plan, report: Path | None = None) -> Found:
    """Let things go wrong for so many seconds, and check what is left. `report`: where to write a bad history."""
    found = Found(plan)
    began = time.monotonic()
    harmless = are_harmless(plan.names)
    more = {"INSTANCE_LEASE_SECONDS": str(LONG_LEASE_SECONDS)} if harmless else None
    async with Stage.opened(plan.seed, previous=plan.previous, more=more) as stage, stage.client() as client:
        _say(began, "everything is started")
        load = Load(stage, client, Random(plan.seed + 1), harmless=harmless)
        trouble = Trouble(stage, load.heard, plan.names)
        users = [asyncio.create_task(load.client()) for _ in range(plan.clients)]
        users += [asyncio.create_task(load.client(stubs=stage.stubs)) for _ in range(plan.stubs)]
        users += [asyncio.create_task(load.crawl()) for _ in range(CRAWLERS)]
        try:
            await _phases(plan, found, stage, load, trouble, users)
        except (Exception, asyncio.CancelledError) as error:
            found.violations += load.wrong + [f"session {s.id}: {told}" for s in load.sessions for told in s.wrong]
            found.violations.append(str(error) if isinstance(error, Broken) else traceback.format_exc())
        for user in users:
            user.cancel()
        await load.close()
        found.violations = list(dict.fromkeys(found.violations))
        found.faults, found.lacking = dict(trouble.done), stage.lacking
        _count(found, load)
        if found.violations and report is not None:
            _write(report, found, load, trouble)
            for host in stage.hosts:
                (report.parent / f"{report.stem}-{host.number}.log").write_bytes(host.instance.log.read_bytes())
        checked = time.monotonic()
    _say(checked, "everything is ended")
    found.seconds = time.monotonic() - began
    return found


async def _phases(
    plan: Plan, found: Found, stage: Stage, load: Load, trouble: Trouble, users: list[asyncio.Task[None]]
) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(3)
    async with _phase("faults", plan.seconds + 2 * WELL_SECONDS):
        await asyncio.gather(*(trouble.go_on(loop.time() + plan.seconds) for _ in range(2)))
    async with _phase("every instance is to be well", WELL_SECONDS):
        await stage.well()
    load.end()
    async with _phase("clients end what they are at", END_SECONDS):
        for told in await asyncio.gather(*users, return_exceptions=True):
            if isinstance(told, BaseException):
                found.violations += traceback.format_exception(told)[-1:]
    async with _phase(f"{len(load.sessions)} sessions are checked", PATIENCE):
        found.violations += await violations(stage, load)
    async with _phase("all of them are deleted", PATIENCE):
        await delete_all(load)
        await load.close()
    async with _phase("what is left over", 2 * PATIENCE):
        found.violations += await left_over(stage, load)


@asynccontextmanager
async def _phase(what: str, seconds: float) -> AsyncIterator[None]:
    """Say what is being done. Raises Broken when it takes longer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds) as bound:
            yield
    except TimeoutError:
        if bound.expired():
            raise Broken(f"{what}: not done in {seconds:.0f} s") from None
        raise
    finally:
        _say(began, what)


def _say(began: float, what: str) -> None:
    print(f"  {time.monotonic() - began:4.0f} s  {what}", file=sys.stderr, flush=True)


async def _alone(plan: Plan, report: Path | None = None) -> Found:
    """`run` in a process of its own, which leaves nothing behind when it is told to end."""
    running = asyncio.ensure_future(run(plan, report))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    return await running


def _count(found: Found, load: Load) -> None:
    found.operations, found.repeated = load.operations, len(load.refused)
    found.events = sum(len(reader.order) for session in load.sessions for reader in session.readers)
    for session in load.sessions:
        for prompt in session.prompts:
            found.prompts += 1
            code = (prompt.run.get("error") or {}).get("code")
            of = "stub" if session.stub else "CLI"
            how = prompt.run.get("status") or "of a session that was deleted meanwhile"
            found.outcomes[f"{of} {how}" + (f" {code}" if code else "")] += 1


def _write(report: Path, found: Found, load: Load, trouble: Trouble) -> None:
    """The faults, and the history of sessions of which something is told."""
    told = "\n".join(found.violations)
    bad = [s for s in load.sessions if s.wrong or s.id in told or any((p.run_id or "-") in told for p in s.prompts)]
    sessions = [
        {
            "id": session.id,
            "deleted": session.deleted,
            "prompts": [vars(prompt) for prompt in session.prompts],
            "readers": [{"name": r.name, "told": r.told, "order": r.order} for r in session.readers],
        }
        for session in bad
    ]
    all_of_it = {"plan": vars(found.plan), "violations": found.violations, "faults": trouble.log, "sessions": sessions}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_bytes(orjson.dumps(all_of_it, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str))


def tell(found: Found) -> None:
    """Print it for people."""
    print(
        f"seed {found.plan.seed}: {sum(found.faults.values())} faults in {found.seconds:.0f} s,"
        f" {found.operations} answers, {found.repeated} asked again, {found.prompts} prompts,"
        f" {found.events} events read, {len(found.violations)} violations"
    )
    print("  faults: " + ", ".join(f"{name} {count}" for name, count in sorted(found.faults.items())))
    for what, why in found.lacking.items():
        print(f"  without {what}: {why}")
    print("  prompts: " + ", ".join(f"{name} {count}" for name, count in sorted(found.outcomes.items())))
    for violation in found.violations:
        print(f"  VIOLATION {violation}")


def checkout(ref: str) -> Path:
    """A checkout of this revision, with what it is installed with. Raises subprocess.CalledProcessError."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", f"{ref}^{{commit}}"]
    commit = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    at = ROOT / ".data" / "previous" / commit
    if not at.exists():
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", str(ROOT), str(at)], check=True)
        subprocess.run(["git", "-C", str(at), "checkout", "-q", commit], check=True)
    subprocess.run(["sh", "-c", '. "${0%/*}/_bootstrap"', "scripts/faults"], cwd=at, check=True)
    return at


def _shortest(plan: Plan) -> Plan:
    """The plan in half of its time, as long as something is still found."""
    while plan.seconds > 30:
        shorter = Plan(**{**vars(plan), "seconds": plan.seconds / 2})
        if not asyncio.run(_alone(shorter)).violations:
            break
        plan = shorter
    return plan


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="for each seed (5)")
    parser.add_argument("--seed", type=int, nargs="+", default=[1], help="which faults, when and for how long (1)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"applications at once ({CLIENTS})")
    stubs = f"more of them, whose agents are a stub that needs no model ({STUBS})"
    parser.add_argument("--stubs", type=int, default=STUBS, help=stubs)
    only = "only faults whose names begin so: " + ", ".join(name for name, _, _ in FAULTS)
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT", help=only)
    older = "a revision that two of the instances are of: one whose migrations are a part of ours (none)"
    parser.add_argument("--previous", metavar="REF", help=older)
    parser.add_argument("--shorten", action="store_true", help="look for the shortest time that shows what was found")
    where = "where histories go that broke a promise (.data/faults)"
    parser.add_argument("--report", type=Path, default=Path(".data/faults"), help=where)
    return parser


def main() -> int:
    """The exit status is 1 when something did not hold, 2 when it could not be asked."""
    asked = arguments().parse_args()
    allow_many_sockets()
    previous = checkout(asked.previous) if asked.previous else None
    bad: list[Plan] = []
    for seed in asked.seed:
        plan = Plan(seed, asked.minutes * 60, asked.clients, asked.stubs, asked.only, previous)
        found = asyncio.run(_alone(plan, asked.report / f"seed-{seed}.json"))
        tell(found)
        if found.violations:
            print(f"  history and logs: {asked.report}/seed-{seed}*", flush=True)
            bad.append(_shortest(plan) if asked.shorten else plan)
    if bad:
        short = min(bad, key=lambda plan: plan.seconds)
        print(f"shortest: scripts/faults --seed {short.seed} --minutes {short.seconds / 60:g}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
