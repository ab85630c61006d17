"""`scripts/endurance`: steady traffic for as long as you say, and whether what the fleet uses levels off."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from apps.api.redis import open_redis
from tests.bench.machine import allow_many_sockets
from tests.bench.report import figure
from tests.endurance import plots
from tests.endurance.samples import Sampler, Samples, kind_of
from tests.endurance.traffic import Steady
from tests.faults.stage import Stage

ROLES = ("both", "both", "api")
CLIENTS = 2
SAMPLES = 400
"""As many as are taken, but for those that would be less than two seconds apart."""

SETTINGS = {"INSTANCE_LEASE_SECONDS": "30", "SHUTDOWN_GRACE_SECONDS": "30"}
"""As they are by default: those of the faults are for more of them in less time."""


@dataclass
class Seen:
    """How one run went."""

    minutes: float
    clients: int
    prompts: int = 0
    answers: int = 0
    sessions: int = 0
    kept: int = 0
    wrong: list[str] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)


async def run(minutes: float, clients: int = CLIENTS) -> Seen:
    """Go on for so long, and look every few seconds."""
    seen, seconds = Seen(minutes, clients), minutes * 60
    async with (
        Stage.opened(1, ROLES, more=SETTINGS, plain=True) as stage,
        stage.client() as client,
        stage.database() as db,
        open_redis(stage.settings) as redis,
    ):
        load = Steady(stage, client, Random(2), harmless=True)
        sampler = Sampler(stage, load, db, redis)
        seen.samples, loop = sampler.samples, asyncio.get_running_loop()
        users = [asyncio.create_task(load.client()) for _ in range(clients)]
        ends = loop.time() + seconds
        try:
            while loop.time() < ends and not any(user.done() for user in users):
                await sampler.sample()
                await asyncio.wait(users, timeout=max(seconds / SAMPLES, 2), return_when=asyncio.FIRST_COMPLETED)
            load.end()
            for told in await asyncio.gather(*users, return_exceptions=True):
                if isinstance(told, BaseException):
                    seen.wrong += traceback.format_exception(told)
        finally:
            await load.close()
        seen.wrong += load.wrong + [told for told in load.refused if "session_busy" not in told]
        seen.wrong += [f"session {session.id}: {told}" for session in load.sessions for told in session.wrong]
        seen.prompts, seen.answers, seen.sessions = load.prompts, load.operations, len(load.sessions)
        seen.kept = sum(not session.deleted for session in load.sessions)
    return seen


def tell(seen: Seen) -> bool:
    """Print it for people. Returns whether all is as it should be."""
    print(
        f"{seen.minutes:g} minutes, {seen.clients} clients: {seen.prompts:,} prompts in {seen.sessions:,} sessions, of"
        f" which {seen.kept:,} were kept; {seen.answers:,} answers; {len(seen.samples.seconds)} samples"
    )
    print(f"   {'':<56}{'2nd third':>12}{'3rd third':>12}")
    level = True
    for name, middle, last, is_level in seen.samples.judged():
        kind, who = kind_of(name), name.rpartition(" ")[2] if name[-1].isdigit() else ""
        title = kind.title + (f", instance {who}" if who else "") + (f", per {kind.per}" if kind.per else "")
        print(f"   {title:<56}{figure(middle):>12}{figure(last):>12}  {'level' if is_level else 'GROWS'}")
        level &= is_level
    for wrong in seen.wrong:
        print(f"   WRONG {wrong}")
    return level and not seen.wrong


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="scripts/endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"applications at once ({CLIENTS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--svg", type=Path, metavar="DIR", help="draw them there as well")
    parser.add_argument("--from", dest="kept", type=Path, metavar="FILE", help="run nothing: figures of --json")
    return parser.parse_args(words)


def main() -> int:
    chosen = arguments()
    if chosen.kept is not None:
        seen = read(chosen.kept)
    else:
        allow_many_sockets()
        seen = asyncio.run(run(chosen.minutes, chosen.clients))
    well = tell(seen)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(seen)) + "\n", encoding="utf-8")
    if chosen.svg is not None:
        plots.write(seen.samples, chosen.svg / "endurance.svg")
    return 0 if well else 1


def read(file: Path) -> Seen:
    """What `--json` has kept."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    return Seen(**{**whole, "samples": Samples(**whole["samples"])})


if __name__ == "__main__":
    sys.exit(main())
