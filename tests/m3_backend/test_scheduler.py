"""Which tokens run next: slots, memory, budget, order, shared prefixes and who gives way."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from m3_backend.kv_memory import Holding, KvMemory, PrefixName
from m3_backend.messages import Priority
from m3_backend.scheduler import Scheduler, Step


@dataclass(eq=False)
class Request:
    prompt: int
    answer: int = 4
    priority: Priority = "interactive"
    prefix: PrefixName | None = None
    is_whole: bool = True
    cached: int = 0
    holding: Holding | None = None
    answered: int = 0

    @property
    def length(self) -> int:
        return self.prompt + self.answered

    @property
    def most(self) -> int:
        return self.prompt + self.answer

    @property
    def is_answering(self) -> bool:
        return self.answered > 0 and self.cached == self.length - 1


def scheduler(slots: int = 8, budget: int = 100, tokens: int = 10_000) -> Scheduler[Request]:
    return Scheduler(slots, budget, KvMemory(tokens))


def run(own: Scheduler[Request], step: Step[Request]) -> list[Request]:
    """What the engine does with a step; gives those that got a token."""
    got = [*step.decode, *(piece.request for piece in step.prefill if piece.is_last)]
    for request in step.decode:
        own.advance(request, 1)
    for piece in step.prefill:
        own.advance(piece.request, piece.tokens)
    for request in got:
        request.answered += 1
        if request.answered == request.answer:
            own.remove(request)
    return got


def pieces(step: Step[Request]) -> dict[Request, int]:
    return {piece.request: piece.tokens for piece in step.prefill}


def test_a_long_prompt_is_taken_up_in_pieces_while_answers_go_on() -> None:
    own = scheduler(budget=100)
    short, long = Request(20, answer=10), Request(250)
    own.add(short)
    assert run(own, own.schedule()) == [short]
    own.add(long)
    taken = []
    while not long.answered:
        step = own.schedule()
        assert step.decode == (short,)
        taken.append(pieces(step)[long])
        run(own, step)
    assert taken == [100, 100, 50]


def test_a_short_prompt_overtakes_long_ones_and_the_first_goes_on_all_the_same() -> None:
    own = scheduler(budget=100)
    long = [Request(500) for _ in range(3)]
    for request in long:
        own.add(request)
    run(own, own.schedule())
    short = Request(30)
    own.add(short)
    step = own.schedule()
    assert pieces(step) == {long[0]: 70, short: 30}
    assert short in run(own, step)


def test_the_first_is_never_left_behind_by_shorter_ones() -> None:
    own = scheduler(slots=4, budget=100)
    long = Request(400)
    own.add(long)
    for _ in range(8):
        for _ in range(3 - len(own.waiting)):
            own.add(Request(100, answer=1))
        run(own, own.schedule())
    assert long.answered


def test_memory_admits_and_not_the_number_of_requests() -> None:
    own = scheduler(slots=8, budget=1000, tokens=200)
    requests = [Request(60) for _ in range(4)]
    for request in requests:
        own.add(request)
    own.schedule()
    assert own.running == requests[:2]  # three prompts would fit, but not their answers
    assert own.memory.held == 120


def test_slots_bound_the_batch() -> None:
    own = scheduler(slots=2)
    for _ in range(3):
        own.add(Request(5))
    own.schedule()
    assert len(own.running) == 2 and len(own.waiting) == 1


def test_questions_about_one_picture_compute_it_once() -> None:
    own = scheduler(budget=60, tokens=500)
    name = PrefixName(b"picture", 80)
    first, second, third = (Request(n, prefix=name) for n in (90, 95, 85))
    for request in (first, second, third):
        own.add(request)
    step = own.schedule()
    assert pieces(step) == {first: 60}  # the others wait for it
    run(own, step)
    run(own, own.schedule())
    step = own.schedule()  # 15 and 5 tokens of their own
    assert pieces(step) == {second: 15, third: 5}
    assert own.memory.held == 80 + 10 + 1 + 15 + 5
    assert own.joined == 2


def test_when_the_one_that_computes_it_leaves_the_next_takes_over() -> None:
    own = scheduler(budget=60)
    name = PrefixName(b"picture", 80)
    first, second = Request(90, prefix=name), Request(95, prefix=name)
    own.add(first)
    own.add(second)
    run(own, own.schedule())
    own.remove(first)
    assert pieces(own.schedule()) == {second: 60}


def test_a_request_without_its_prefix_has_to_be_prepared_again() -> None:
    own = scheduler()
    lost = Request(90, prefix=PrefixName(b"gone", 80), is_whole=False)
    own.add(lost)
    assert own.schedule() == Step(unprepared=(lost,))
    assert not own.running and not own.waiting


def test_the_last_that_came_gives_way_batch_first_and_starts_over() -> None:
    own = scheduler(tokens=100)
    first, batch, last = (
        Request(20, answer=60),
        Request(20, answer=60, priority="batch"),
        Request(20, answer=60),
    )
    for request in (first, batch, last):
        own.add(request)
    finished: list[Request] = []
    while own.running or own.waiting:
        finished += [r for r in run(own, own.schedule()) if r.answered == r.answer]
        if own.preempted == 1 and batch.answered < batch.answer and last in own.running:
            assert (batch.cached, batch.holding) == (0, None)
    assert finished == [first, last, batch]
    assert own.preempted and own.memory.available == 100


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 120), st.integers(1, 30), st.integers(0, 3), st.booleans()),
        max_size=25,
    ),
    st.data(),
)
def test_every_request_ends_and_every_row_comes_back(
    arrivals: list[tuple[int, int, int, bool]], data: st.DataObject
) -> None:
    own = scheduler(slots=4, budget=50, tokens=150)
    upcoming = []
    for prompt, answer, picture, batch in arrivals:
        name = PrefixName(bytes([picture]), picture * 20) if 0 < picture * 20 < prompt else None
        kind: Priority = "batch" if batch else "interactive"
        upcoming.append(Request(prompt, answer, kind, name))
    finished, steps = 0, 0
    while upcoming or own.waiting or own.running:
        for _ in range(data.draw(st.integers(0, 3))):
            if upcoming:
                own.add(upcoming.pop())
        step = own.schedule()
        assert sum(pieces(step).values()) <= 50
        shared = {r.prefix.key: r.prefix.tokens for r in own.running if r.prefix and r.cached}
        alone = (r.length - (r.prefix.tokens if r.prefix and r.cached else 0) for r in own.running)
        assert own.memory.held <= sum(alone) + sum(shared.values())  # nothing but tokens
        finished += sum(r.answered == r.answer for r in run(own, step))
        steps += 1
        assert steps < 5000
    assert finished == len(arrivals)
    assert own.memory.held == 0 and own.memory.available == 150
