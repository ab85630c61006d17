"""The turns of a session: which of them an agent's death ends, and whose clocks stand still."""

from __future__ import annotations

from uuid import uuid4

from apps.api.core.config.agent import AgentConfig
from apps.api.core.fleet.claims import Claim
from apps.api.runner.session.turn import Turn, Turns


def claim() -> Claim:
    return Claim(uuid4(), "prompt", "say hello", False, 60, AgentConfig(), uuid4(), uuid4(), 1, 0, uuid4())


def turns() -> Turns:
    return Turns(lambda: None)


def background() -> Turn:
    return Turn(uuid4(), None, seconds=60)


def test_a_prompt_that_no_agent_has_is_not_taken_along_by_one_that_dies() -> None:
    mine = turns()
    mine.assign(claim())
    assert mine.lose() == []


def test_a_prompt_survives_one_agent_that_dies_before_its_turn() -> None:
    mine = turns()
    turn = mine.assign(claim())
    for taken in ([], [turn]):
        turn.begin()
        assert mine.lose() == taken
    assert not turn.ended.is_set()


def test_a_prompt_that_is_being_stopped_is_not_given_to_another_agent() -> None:
    mine = turns()
    turn = mine.assign(claim())
    turn.begin()
    turn.stop("interrupted")
    turn.stop("shutdown")
    assert (mine.lose(), turn.stopping) == ([turn], "interrupted")


def test_a_dead_agent_takes_the_turn_that_it_was_in_and_leaves_the_prompt_behind_it() -> None:
    mine, before = turns(), background()
    mine.enter(before)
    turn = mine.assign(claim())
    turn.begin()
    assert mine.lose() == [before]
    assert (mine.of(None), mine.of(before.run_id)) == (turn, before)


def test_a_background_turn_inside_a_run_has_no_end_of_its_own() -> None:
    mine = turns()
    turn = mine.assign(claim())
    turn.begin()
    mine.enter(Turn(turn.run_id, None, guest=True))
    assert (mine.lose(), mine.run_id) == ([], turn.run_id)


def test_only_the_runs_that_wait_for_a_person_stand_still() -> None:
    freed: list[bool] = []
    mine, other = Turns(lambda: freed.append(True)), background()
    turn = mine.assign(claim())
    mine.enter(other)
    mine.hold({turn.run_id, None})
    assert (turn.paused, other.paused, freed) == (True, False, [True])
    left = turn.seconds_left()
    assert turn.seconds_left() == left
    mine.hold(())
    assert not turn.paused


def test_what_has_ended_is_no_run_of_what_comes_after() -> None:
    mine = turns()
    turn = mine.assign(claim())
    mine.enter(turn)
    assert mine.run_id == turn.run_id
    mine.end(turn)
    assert turn.taken_up.is_set()
    assert {mine.active, mine.run_id} == {None}
    mine.leave()
    assert mine.of(None) is None
