"""Deliberate defects, each of which some test must catch: what a careless change might do to what the product promises.

`python -m tests.mutants` (`scripts/mutants`) makes them, one after the other, in a copy of the repository.
"""

from __future__ import annotations

from dataclasses import dataclass

CORE = "apps/api/core"
COMMANDS, AHEAD = "tests/core/fleet/test_commands.py", "tests/acceptance/test_ahead.py"
REQUEUE, OUTBOUND = "tests/core/fleet/test_requeue.py", "tests/core/network/test_outbound.py"


@dataclass(frozen=True, slots=True)
class Defect:
    """A change of one place.

    Attributes:
        breaks: what is promised and does not hold with it.
        before, after: a text that is in `file` once, and what takes its place.
        caught_by: the tests, as pytest names them, at least one of which must fail.
        faults: arguments of `scripts/faults` by which that finds it; alone, where no test is named.
    """

    breaks: str
    file: str
    before: str
    after: str
    caught_by: tuple[str, ...]
    faults: str = ""

    @property
    def shown(self) -> str:
        """What catches it, as the docs have it."""
        test = [f"`{self.caught_by[0].removeprefix('tests/')}`"] if self.caught_by else []
        return " and ".join([*test, *([f"`scripts/faults {self.faults}`"] if self.faults else [])])


DEFECTS = (
    Defect(
        "an owner that has lost its session writes nothing more (no fencing)",
        f"{CORE}/events/log.py",
        "WHERE id = $1 AND generation = $2 AND last_seq = $3\n  RETURNING id",
        "WHERE id = $1 AND generation >= least($2, generation) AND last_seq = $3\n  RETURNING id",
        ("tests/core/events/test_log.py::test_a_writer_of_an_older_generation_writes_nothing",),
    ),
    Defect(
        "an owner that has lost its session writes nothing more, together with others either",
        f"{CORE}/events/batches.py",
        " AND generation = a.generation AND last_seq = a.last_seq",
        " AND last_seq = a.last_seq",
        ("tests/core/events/test_batches.py::test_a_writer_that_is_fenced_out_stores_nothing_and_fails_no_other",),
    ),
    Defect(
        "an event is stored once, at its place, however often its append is repeated",
        f"{CORE}/events/log.py",
        '    if status != f"INSERT 0 {len(frames)}":\n        raise LeaseLost(',
        '    if not status.startswith("INSERT"):\n        raise LeaseLost(',
        ("tests/core/events/test_log.py::test_a_writer_that_expects_another_position_writes_nothing",),
    ),
    Defect(
        "who lost its lease by its own clock does not even try to write",
        f"{CORE}/events/log.py",
        "                nonlocal tried\n                self._lease.require()\n",
        "                nonlocal tried\n",
        ("tests/core/events/test_log.py::test_a_writer_whose_lease_ran_out_on_its_own_clock_does_not_even_try",),
    ),
    Defect(
        "what was stored while a reader's subscription was away is read (no read after a gap)",
        f"{CORE}/events/follow.py",
        "        self.behind = True\n        self._change()\n",
        "        self._change()\n",
        ("tests/core/events/test_follow.py::test_readers_survive_the_loss_of_the_subscribing_connection",),
    ),
    Defect(
        "a publication that was lost is found by comparing with the database",
        f"{CORE}/events/follow.py",
        '                topic.check(expected, row["generation"], deleted=row["deleted_at"] is not None)\n',
        '                topic.check(0, row["generation"], deleted=row["deleted_at"] is not None)\n',
        ("tests/core/events/test_follow.py::test_a_last_event_whose_publication_was_lost_is_found_by_the_check",),
    ),
    Defect(
        "an instance whose lease has run out by the database's clock claims nothing",
        f"{CORE}/fleet/claims.py",
        "  SELECT id FROM instances WHERE id = $1 AND lease_expires_at > now() AND NOT draining\n), waiting",
        "  SELECT id FROM instances WHERE id = $1 AND NOT draining\n), waiting",
        ("tests/core/fleet/test_claims.py::test_instances_that_drain_are_dead_or_unknown_claim_nothing",),
    ),
    Defect(
        "a run that an agent was given is not repeated",
        f"{CORE}/sessions/outcome.py",
        "  AND r.unsent AND r.requeued < $2",
        "  AND r.requeued < $2",
        ("tests/core/fleet/test_requeue.py::test_a_run_that_an_agent_was_given_is_not_repeated",),
    ),
    Defect(
        "who sends a prompt while its session is taken away does so before, or not at all",
        f"{CORE}/fleet/ownership.py",
        '"WITH pen AS MATERIALIZED (SELECT id FROM sessions WHERE id = $1 AND generation = $2 FOR SHARE)"',
        '"WITH pen AS MATERIALIZED (SELECT id FROM sessions WHERE id = $1 AND generation = $2)"',
        (f"{REQUEUE}::test_who_sends_while_the_session_is_taken_away_does_so_before_or_not_at_all",),
    ),
    Defect(
        "a run ends once",
        f"{CORE}/sessions/outcome.py",
        "WHERE id = $1 AND (status IN ('running','requires_action') OR (status = 'queued' AND parked IS NOT NULL))",
        "WHERE id = $1",
        ("tests/runner/session/test_ends.py::test_the_database_ends_a_run_once_and_stores_nothing_of_a_second_end",),
    ),
    Defect(
        "a command is settled once",
        f"{CORE}/fleet/commands.py",
        "\"UPDATE commands SET status = $2, applied_at = now(), result = $3 WHERE id = $1 AND status = 'pending'\"",
        '"UPDATE commands SET status = $2, applied_at = now(), result = $3 WHERE id = $1"',
        ("tests/core/fleet/test_commands.py::test_a_command_is_settled_once",),
    ),
    Defect(
        "requests at once with one idempotency key make one run",
        f"{CORE}/tenant/idempotency.py",
        '"SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"',
        '"SELECT hashtextextended($1, 0)"',
        ("tests/core/sessions/test_runs.py::test_twenty_requests_at_once_with_one_key_make_one_run_and_one_session",),
    ),
    Defect(
        "an idempotency key stands for one request",
        f"{CORE}/tenant/idempotency.py",
        '    if row["fingerprint"] != idempotency.fingerprint:\n        raise reused()\n',
        "",
        ("tests/core/sessions/test_runs.py::test_a_key_cannot_be_used_for_something_else",),
    ),
    Defect(
        "a prompt that was accepted is not accepted again under its idempotency key",
        f"{CORE}/sessions/prompts.py",
        "enqueue(core, connection, tenant_id, api_key_id, submission, changed)\n    if submission.idempotency:\n",
        "enqueue(core, connection, tenant_id, api_key_id, submission, changed)\n    if False:\n",
        ("tests/core/sessions/test_runs.py::test_twenty_prompts_at_once_with_one_key_make_one_run_in_their_session",),
        "--minutes 0.7 --only 'deletion cut' 'commit cut'",
    ),
    Defect(
        "an interrupt stops the run that it means, and no other",
        f"{CORE}/fleet/cancellation.py",
        '    if meant not in (None, row["run_id"]):\n',
        "    if False:\n",
        ("tests/core/fleet/test_cancellation.py::test_an_interrupt_that_means_another_run_stops_nothing",),
    ),
    Defect(
        "a tenant reads its own runs alone",
        f"{CORE}/sessions/runs.py",
        '_COLUMNS + "WHERE id = $1 AND tenant_id = $2"',
        '_COLUMNS + "WHERE id = $1 AND $2::uuid IS NOT NULL"',
        ("tests/core/sessions/test_runs.py::test_runs_of_others_are_not_found",),
    ),
    Defect(
        "a key that has expired is refused, though it is cached",
        "apps/api/auth.py",
        "    if principal.expires_at is not None and principal.expires_at <= clock.now():\n",
        "    if False:\n",
        ("tests/test_auth.py::test_a_key_that_expires_while_it_is_cached_is_refused",),
    ),
    Defect(
        "a key that was revoked is refused at once by every instance",
        "apps/api/auth.py",
        "    await redis.forget_all(map(redis.keys.api_key, filter(None, hashes)), KEY_CACHE_TTL * 1000)\n",
        "",
        ("tests/test_auth.py::test_a_revoked_key_is_refused_at_once_although_it_was_cached",),
    ),
    Defect(
        "tenants take turns",
        f"{CORE}/fleet/claims.py",
        "  ORDER BY coalesce(of_tenant.runs, 0), t.claimed_at NULLS FIRST, c.position\n",
        "  ORDER BY c.position\n",
        ("tests/core/fleet/test_turns.py::test_a_long_queue_of_one_tenant_delays_another_by_one_claim_at_most",),
    ),
    Defect(
        "a call of the model that a budget forbids is not made",
        f"{CORE}/tenant/budgets.py",
        '        if row["reached"] is not None:\n            raise refusal(row["reached"])\n',
        "",
        ("tests/core/tenant/test_budgets.py::test_a_budget_lets_everything_through_until_it_is_reached",),
    ),
    Defect(
        "the token of an agent's process opens nothing once that has ended",
        "apps/api/runner/gateway/gateway.py",
        "        self._holders.pop(_key(holder.token.encode()), None)\n        for caller",
        "        for caller",
        ("tests/runner/gateway/test_gateway.py::test_a_token_ends_with_its_process_and_so_does_what_it_has_asked",),
    ),
    Defect(
        "no link of an agent's leads the server elsewhere",
        f"{CORE}/files/trees.py",
        "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)",
        "os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)",
        ("tests/core/files/test_trees.py::test_only_regular_files_below_the_root_are_read",),
    ),
    Defect(
        "no content is lost that changed within one tick of the clock in which it was stored",
        f"{CORE}/files/snapshots.py",
        "TICK = 20_000_000\n",
        "TICK = -20_000_000\n",
        ("tests/core/files/test_store.py::test_what_was_changed_just_before_is_read_again_the_next_time",),
    ),
    Defect(
        "a manifest of which a part is missing is told, and not restored",
        f"{CORE}/files/manifest.py",
        "        if count != len(entries):\n",
        "        if False:\n",
        ("tests/core/files/test_store.py::test_of_a_manifest_only_what_has_changed_is_written_anew",),
    ),
    Defect(
        "what may still be named by a manifest that is being stored is no garbage",
        f"{CORE}/files/garbage.py",
        "        self._young = clock.now().timestamp() - KEPT\n",
        "        self._young = clock.now().timestamp() + KEPT\n",
        ("tests/core/files/test_garbage.py",),
    ),
    Defect(
        "nothing is sent to an address that is not public",
        f"{CORE}/network/outbound.py",
        "    return not any(address in block for block in _SPECIAL if block.version == address.version)\n",
        "    return True\n",
        (f"{OUTBOUND}::test_every_spelling_of_a_private_target_is_refused_before_anything_is_sent",),
    ),
    Defect(
        "what was stored is answered as accepted, where the database cannot be asked any more",
        f"{CORE}/fleet/commands.py",
        "                with suppress(*CONNECTION_ERRORS):\n                    row = await",
        "                if True:\n                    row = await",
        (f"{COMMANDS}::test_what_is_stored_is_accepted_though_the_database_is_away_then",),
    ),
    Defect(
        "an agent that was started ahead is for its tenant alone",
        "apps/api/runner/ahead.py",
        "        return cls(tenant_id, profile, encode(config.given()))\n",
        "        return cls(UUID(int=0), profile, encode(config.given()))\n",
        (f"{AHEAD}::test_it_is_for_its_tenant_its_configuration_and_what_the_tenant_has_now",),
    ),
)
