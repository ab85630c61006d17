"""What must hold of every session, whatever went wrong: by what its clients were told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

from tests.faults.history import MARKS, Prompt, Session

MAY_FAIL = {
    "owner_lost",
    "shutdown",
    "agent_crashed",
    "agent_start_failed",
    "storage_failed",
    "workspace_not_restored",
}
"""How a run may end that nobody has interrupted: its client is told, and can send it again."""

RECALLING = {"recall", "files"}
"""Kinds of prompts that only ask for what was before."""

FILES_LOST = {"workspace_not_stored", "workspace_missing"}
"""What a client is told whose files may not be what they were."""


NO_SPACE = ("No space left", "Disk full")
"""What the shell, and the CLI, say where a disk is full."""


def of_session(session: Session, marks: Iterable[str], *, harmless: bool = False) -> list[str]:
    """All that did not hold of one whose runs are over, and whose readers have come to its end.

    `marks`: see `of_marks`. `harmless`: see `of_runs`.
    """
    found = (
        of_readers(session),
        of_runs(session, harmless=harmless),
        of_marks(marks),
        of_conversation(session),
        of_files(session),
    )
    return list(chain.from_iterable(found))


def of_readers(session: Session) -> Iterator[str]:
    """Every reader was told the same, without a gap, and nothing twice; each run had one end, and nothing after it."""
    for reader in session.readers:
        yield from (f"reader {reader.name}: {fault}" for fault in reader.faults)
        numbers = reader.order
        if numbers != list(range(1, len(numbers) + 1)):
            wrong = next(at for at, number in enumerate(numbers, 1) if number != at)
            yield f"reader {reader.name}: event {numbers[wrong - 1]} came as number {wrong}"
    one, other = session.readers
    for number in one.told.keys() & other.told.keys():
        if one.told[number] != other.told[number]:
            yield f"event {number} is {one.told[number]} for one reader, {other.told[number]} for the other"
    ends = Counter(run_id for kind, run_id, _ in one.told.values() if kind == "done")
    ended: set[str | None] = set()
    for number in sorted(one.told):
        kind, run_id, _ = one.told[number]
        if run_id in ended and kind != "done":
            yield f"event {number}, {kind}, is of run {run_id}, which was done before"
        if kind == "done":
            ended.add(run_id)
    for run_id, count in ends.items():
        if count > 1:
            yield f"run {run_id} was done {count} times"
    for prompt in session.prompts:
        if prompt.run and prompt.run_id not in ends:
            yield f"run {prompt.run_id} ({prompt.kind} {prompt.token}) is over, and was never told done"


def of_runs(session: Session, *, harmless: bool = False) -> Iterator[str]:
    """Each accepted prompt has one outcome, which is its own; only what was named is interrupted, and what was answered
    with `applied` has come to be.

    `harmless`: nothing has gone wrong for which a run may fail.
    """
    runs = Counter(prompt.run_id for prompt in session.prompts)
    yield from (f"run {run_id} is of {count} prompts" for run_id, count in runs.items() if count > 1)
    for prompt in session.prompts:
        run = prompt.run
        code = (run.get("error") or {}).get("code")
        what = f"run {prompt.run_id} ({prompt.kind} {prompt.token}) is {run.get('status')} {code or ''}"
        match run.get("status"):
            case "succeeded" if (into := run["result"].get("steered_into")) is not None:
                if not prompt.steered or into == prompt.run_id or into not in runs:
                    yield f"{what}, and is said to be in run {into}"
            case "succeeded":
                said = str(run["result"]["result"])
                word = {"say": prompt.token, "stream": f"word{prompt.words[0]}"}.get(prompt.kind, "")
                if word not in said:
                    yield f"{what}, and said {said[:200]!r}"
                was_run = prompt.token in said or (prompt.decided == "allow" and _had_no_space(prompt))
                if prompt.decided and (prompt.decided == "allow") != was_run:
                    yield f"{what}, was answered {prompt.decided}, and said {said[:200]!r}"
            case "interrupted":
                if not prompt.interrupted:
                    yield f"{what}, and nobody has asked for that"
            case "failed":
                if harmless or code not in MAY_FAIL:
                    yield what
            case _:
                yield what
        if prompt.stopped and run.get("status") != "interrupted":
            yield f"{what}, and its interrupt was answered with `applied`"


def of_marks(lines: Iterable[str]) -> Iterator[str]:
    """No two agents of a session were at work at one time: what they have written lies in no other's time.

    `lines`: of all hosts, so that those which have travelled are there more than once.
    """
    times: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        token, _, moment = line.partition(" ")
        if moment.isdigit():
            times[token].add(int(moment))
    for token, moments in times.items():
        if len(moments) > MARKS:
            yield f"{token} was carried out more than once: {len(moments)} marks"
    order = sorted(times.items(), key=lambda item: min(item[1]))
    for (token, before), (later, after) in pairwise(order):
        if max(before) > min(after):
            yield f"{token} was at work {(max(before) - min(after)) / 1e6:.0f} ms after {later} had begun"


def of_conversation(session: Session) -> Iterator[str]:
    """The agent knows each prompt that has succeeded, once, and what the session began with: by what it recalls."""
    for number, recall in enumerate(session.prompts):
        if recall.kind != "recall" or recall.run.get("status") != "succeeded":
            continue
        known = str(recall.run["result"]["result"]).splitlines()
        told = Counter(line.partition(". ")[2] for line in known)
        for before in (*session.inherits, *session.prompts[:number]):
            if before.kind in RECALLING:
                continue
            times = told[before.text]
            if times > 1 or (before.run.get("status") == "succeeded" and times == 0):
                yield f"the agent knows {before.token} ({before.run.get('status')}) {times} times"


def of_files(session: Session) -> Iterator[str]:
    """What a run that succeeded has written is in the session's files, wherever the next one was: by what it finds."""
    if any(reader.statuses & FILES_LOST for reader in session.readers):
        return
    for number, recall in enumerate(session.prompts):
        if recall.kind != "files" or recall.run.get("status") != "succeeded" or _had_no_space(recall):
            continue
        there: Counter[str] = Counter()
        for line in str(recall.run["result"]["result"]).splitlines():
            for count, token in pairwise(line.split()):
                if count.isdigit():
                    there[token] += int(count)
        for before in (*session.inherits, *session.prompts[:number]):
            wrote = before.kind == "marks" and before.run.get("status") == "succeeded"
            wrote = wrote and before.written in str(before.run["result"]["result"])
            if wrote and there[before.token] != MARKS:
                yield f"of the {MARKS} marks of {before.token}, {there[before.token]} are in the files"


def _had_no_space(prompt: Prompt) -> bool:
    return any(told in str(prompt.run["result"]["result"]) for told in NO_SPACE)
