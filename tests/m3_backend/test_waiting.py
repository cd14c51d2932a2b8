"""Interactive before batch, and nobody for ever."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from m3_backend.messages import Priority
from m3_backend.waiting import BATCH_TURN, WaitingLine


@dataclass(eq=False)
class Request:
    number: int
    priority: Priority = "interactive"


priorities = st.sampled_from(("interactive", "batch"))


def line_of(*kinds: Priority) -> tuple[WaitingLine[Request], list[Request]]:
    line: WaitingLine[Request] = WaitingLine()
    requests = [Request(number, kind) for number, kind in enumerate(kinds)]
    for request in requests:
        line.add(request)
    return line, requests


def test_batch_waits_behind_what_came_later() -> None:
    line, _ = line_of("batch", "interactive", "batch", "interactive")
    assert [request.number for request in line] == [1, 3, 0, 2]
    assert [line.pop().number for _ in range(4)] == [1, 3, 0, 2]
    assert not line


def test_batch_gets_its_turn_however_many_others_come() -> None:
    line, _ = line_of(*["batch"] * 3, *["interactive"] * 50)
    taken = [line.pop().priority for _ in range(3 * BATCH_TURN)]
    assert [at + 1 for at, kind in enumerate(taken) if kind == "batch"] == [
        BATCH_TURN,
        2 * BATCH_TURN,
        3 * BATCH_TURN,
    ]


def test_turns_are_only_saved_up_while_batch_waits() -> None:
    line, _ = line_of(*["interactive"] * 30)
    for _ in range(20):
        line.pop()
    line.add(Request(99, "batch"))
    assert line.pop().priority == "interactive"


@given(st.lists(priorities | st.none(), max_size=60))
def test_each_kind_is_first_come_first_served_and_nothing_gets_lost(
    steps: list[Priority | None],
) -> None:
    """None takes one; what `first` promises is what `pop` gives."""
    line, added, taken = WaitingLine[Request](), [], []
    for number, kind in enumerate(steps):
        if kind is not None:
            added.append(Request(number, kind))
            line.add(added[-1])
        elif line:
            expected = line.first()
            taken.append(line.pop())
            assert taken[-1] is expected
    while line:
        taken.append(line.pop())
    for kind in ("interactive", "batch"):
        assert [r for r in taken if r.priority == kind] == [r for r in added if r.priority == kind]


def test_removal_from_anywhere() -> None:
    line, requests = line_of("batch", "interactive", "batch")
    for request in requests[:2]:
        line.remove(request)
    assert (len(line), list(line)) == (1, [requests[2]])
