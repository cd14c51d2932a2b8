"""The books of KV memory: every row has one owner, and what is shared is counted once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_backend.kv_memory import Holding, KvMemory, PrefixName

NAME = PrefixName(b"a", 6)


def holding(most: int = 40) -> Holding:
    return Holding(np.zeros(most, np.int64))


def filled(memory: KvMemory, name: PrefixName, more: int = 2) -> Holding:
    """One that has computed a prefix and `more` tokens."""
    first = holding()
    memory.begin(first, name)
    assert memory.grow(first, name.tokens + more)
    memory.complete(first, name.tokens + more)
    return first


def test_a_shared_prefix_is_counted_once_and_outlives_its_users() -> None:
    memory = KvMemory(20)
    first, second = filled(memory, NAME), holding()
    memory.join(second, NAME)
    assert memory.grow(second, 3)
    assert memory.held == 6 + 2 + 3
    assert second.table[:6].tolist() == first.table[:6].tolist()
    assert not set(second.table[6:9]) & set(first.table[:8])
    memory.release(first)
    memory.release(second)
    assert (memory.held, memory.idle, memory.available) == (0, 6, 20)
    assert memory.is_ready(NAME)


def test_idle_prefixes_make_room_the_least_recently_used_first() -> None:
    memory = KvMemory(20)
    names = [PrefixName(bytes([n]), 6) for n in range(3)]
    for name in names:
        memory.release(filled(memory, name, more=0))
    again = holding()
    memory.join(again, names[0])
    memory.release(again)
    assert memory.grow(holding(), 8)  # 2 are free: one of them goes, and it is the second
    assert [memory.is_ready(name) for name in names] == [True, False, True]


def test_what_is_in_use_is_never_evicted() -> None:
    memory = KvMemory(10)
    user = filled(memory, NAME, more=0)
    assert not memory.grow(holding(), 5)
    assert memory.available == 4 and memory.is_ready(NAME)
    memory.release(user)
    assert memory.grow(holding(), 10)
    assert not memory.is_known(NAME)


def test_a_prefix_that_was_not_completed_is_forgotten() -> None:
    memory = KvMemory(10)
    first = holding()
    memory.begin(first, NAME)
    memory.grow(first, 5)
    memory.complete(first, 5)
    assert memory.is_known(NAME) and not memory.is_ready(NAME)
    memory.release(first)
    assert not memory.is_known(NAME) and memory.available == 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60))
def test_no_row_is_lost_or_given_twice(actions: list[tuple[int, int]]) -> None:
    memory, live = KvMemory(30), list[Holding]()
    names = [PrefixName(bytes([n]), n + 1) for n in range(4)]
    for action, number in actions:
        name = names[number % 4]
        if action == 0:
            one = holding(30)
            if memory.is_ready(name):
                memory.join(one, name)
            elif not memory.is_known(name):
                memory.begin(one, name)
            live.append(one)
        elif live and action == 1:
            one = live[number % len(live)]
            if one.length + number <= 30:
                memory.grow(one, number)
        elif live and action == 2:
            one = live[number % len(live)]
            memory.complete(one, one.length)
        elif live:
            memory.release(live.pop(number % len(live)))
        own = [row for one in live for row in one.table[one.shared : one.length].tolist()]
        shared = {row for one in live for row in one.table[: one.shared].tolist()}
        assert len(own) == len(set(own)) and not shared & set(own)
        assert memory.held == len(own) + len(shared)
        assert 0 not in own and 0 not in shared
    for one in live:
        memory.release(one)
    assert memory.available == 30 and memory.grow(holding(30), 30)
