"""Who runs next: slots, budget, order, and the moves that keep slots dense."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from m3_backend.messages import Priority
from m3_backend.scheduler import Move, Scheduler, similar_lengths


@dataclass(eq=False)
class Request:
    prompt_tokens: int
    priority: Priority = "interactive"


def test_first_come_first_served_within_slots_and_budget() -> None:
    scheduler: Scheduler[Request] = Scheduler(slots=4, prefill_budget=100)
    requests = [Request(60), Request(40), Request(10), Request(10), Request(10)]
    for request in requests:
        scheduler.add(request)
    first = scheduler.schedule()
    assert first.decode == ()
    assert {r for batch in first.prefills for r in batch.requests} == set(requests[:2])
    second = scheduler.schedule()
    assert set(second.decode) == set(requests[:2])
    assert [batch.requests for batch in second.prefills] == [(requests[2], requests[3])]
    third = scheduler.schedule()
    assert len(third.decode) == 4 and not third.prefills
    assert list(scheduler.waiting) == [requests[4]]


def test_a_prompt_over_the_budget_still_gets_its_turn() -> None:
    scheduler: Scheduler[Request] = Scheduler(slots=2, prefill_budget=10)
    scheduler.add(Request(1000))
    assert scheduler.schedule().prefills


def test_removal_moves_the_last_request_into_the_gap() -> None:
    scheduler: Scheduler[Request] = Scheduler(slots=3, prefill_budget=100)
    requests = [Request(5), Request(5), Request(5)]
    for request in requests:
        scheduler.add(request)
    scheduler.schedule()
    a, b, c = scheduler.running
    assert scheduler.remove(a) == Move(source=2, target=0)
    assert scheduler.running == [c, b]
    assert scheduler.remove(b) is None
    assert scheduler.remove(c) is None
    assert scheduler.running == []
    waiting = Request(1)
    scheduler.add(waiting)
    assert scheduler.remove(waiting) is None and not scheduler.waiting


@given(st.lists(st.integers(1, 3000), max_size=30))
def test_groups_are_similar_in_length_and_complete(lengths: list[int]) -> None:
    requests = [Request(length) for length in lengths]
    groups = similar_lengths(requests)
    assert sorted(r.prompt_tokens for group in groups for r in group) == sorted(lengths)
    for group in groups:
        assert group[-1].prompt_tokens <= 2 * group[0].prompt_tokens + 16


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 6)), max_size=40), st.data())
def test_slots_stay_dense_and_every_request_ends(
    arrivals: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Replays the moves on a list that stands for the KV slots."""
    scheduler: Scheduler[Request] = Scheduler(slots=4, prefill_budget=800)
    life = {Request(tokens): steps for tokens, steps in arrivals}
    upcoming = list(life)
    slots: list[Request | None] = [None] * 4
    finished = 0
    while upcoming or scheduler.waiting or scheduler.running:
        for _ in range(data.draw(st.integers(0, 3))):
            if upcoming:
                scheduler.add(upcoming.pop())
        step = scheduler.schedule()
        assert scheduler.running or not scheduler.waiting  # nothing waits for nobody
        assert list(step.decode) == slots[: len(step.decode)]
        for batch in step.prefills:
            for offset, request in enumerate(batch.requests):
                slots[batch.first + offset] = request
        assert slots[: len(scheduler.running)] == scheduler.running
        for request in list(scheduler.running):
            life[request] -= 1
            if not life[request]:
                move = scheduler.remove(request)
                if move:
                    slots[move.target] = slots[move.source]
                finished += 1
    assert finished == len(arrivals)
