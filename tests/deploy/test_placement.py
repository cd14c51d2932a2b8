"""Who gets a picture's questions: always the same replica, but never one that drowns."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest

from deploy.placement import BOUND, SLACK, picture_of, rank, two_choices, work_of
from m3_backend.messages import GenerationRequest, ImageInput, Turn

RNG = random.Random(0)


def first(picture: str | None, own: int, work: dict[str, int]) -> str:
    return rank(picture, own, work, RNG)[0][0]


def test_a_picture_always_goes_to_the_same_replica_and_pictures_to_all() -> None:
    work = dict.fromkeys("abcd", 0)
    homes = [first(f"p{n}", 40, work) for n in range(400)]
    assert homes == [first(f"p{n}", 40, work) for n in range(400)]
    assert min(Counter(homes).values()) > 60


def test_a_replica_that_goes_moves_its_own_pictures_only() -> None:
    before = {n: first(f"p{n}", 40, dict.fromkeys("abcd", 0)) for n in range(200)}
    after = {n: first(f"p{n}", 40, dict.fromkeys("abd", 0)) for n in range(200)}
    assert all(after[n] == before[n] for n in before if before[n] != "c")


def test_too_much_work_sends_it_to_the_next_of_its_order() -> None:
    order = [names[0] for names in rank("p", 40, dict.fromkeys("abc", 0), RNG)[:3]]
    busy = {order[0]: 3 * SLACK, order[1]: 0, order[2]: 0}
    assert [names[0] for names in rank("p", 40, busy, RNG)[:2]] == order[1:]
    assert order[0] in rank("p", 40, busy, RNG)[-1]  # better there than nowhere


def test_without_a_picture_the_less_busy_of_two() -> None:
    assert first(None, 40, {"a": 900, "b": 10}) == "b"
    assert rank(None, 40, {}, RNG) == []
    assert two_choices({"a": 1}, RNG) == [["a"]]


def test_salts_part_pictures_and_work_is_in_tokens() -> None:
    image = ImageInput(b"", "d" * 64, 1, 1)
    asked = GenerationRequest("r", (Turn("user", ("?",)),), (image, image), (9, 144))
    assert work_of(asked) - work_of(GenerationRequest("r", (), (), ())) == 153
    salted = GenerationRequest("r", (), (image,), (9,), cache_salt="tenant")
    assert picture_of(asked) != picture_of(salted)
    assert picture_of(GenerationRequest("r", (), (), ())) is None


class Lru:
    def __init__(self, capacity: int) -> None:
        self._capacity, self._held = capacity, OrderedDict[int, None]()

    def ask(self, key: int) -> bool:
        hit = key in self._held
        self._held[key] = None
        self._held.move_to_end(key)
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return hit


@pytest.mark.parametrize("replicas", [2, 4])
def test_caches_of_replicas_hit_nearly_as_often_as_one_of_their_size(replicas: int) -> None:
    """2,000 pictures by Zipf's law, every cache holds a tenth of them; 40 requests on their way."""
    weights = 1 / np.arange(1, 2001)
    drawn = np.random.default_rng(1).choice(2000, 30_000, p=weights / weights.sum())
    one = Lru(200 * replicas)
    caches = {name: Lru(200) for name in "abcd"[:replicas]}
    work = dict.fromkeys(caches, 0)
    on_their_way: deque[tuple[str, int]] = deque()
    together = apart = 0
    for number, picture in enumerate(drawn.tolist()):
        if len(on_their_way) == 40:
            name, done = on_their_way.popleft()
            work[name] -= done
        own = (33, 41, 68, 176)[number % 4]
        name = first(str(picture), own, work)
        work[name] += own
        on_their_way.append((name, own))
        together += one.ask(picture)
        apart += caches[name].ask(picture)
    assert apart >= 0.9 * together


def test_a_picture_that_half_of_all_ask_about_drowns_nobody() -> None:
    rng = random.Random(2)
    work = dict.fromkeys("ab", 0)
    on_their_way: deque[tuple[str, int]] = deque()
    for _ in range(5000):
        if len(on_their_way) == 200:
            name, done = on_their_way.popleft()
            work[name] -= done
        picture = "hot" if rng.random() < 0.5 else f"p{rng.randrange(2000)}"
        name = first(picture, 100, work)
        work[name] += 100
        on_their_way.append((name, 100))
        mean = sum(work.values()) / 2
        assert max(work.values()) <= max(SLACK, BOUND * mean)
