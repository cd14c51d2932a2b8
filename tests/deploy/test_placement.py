"""Who gets a picture's questions: always the same replica, but never one that drowns."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest

from deploy.placement import picture_of, rank, two_choices, work_of
from m3_backend.messages import GenerationRequest, ImageInput, Turn

RNG = random.Random(0)


ENCODE_MS = 35.0


def first(picture: str | None, work: dict[str, float], encode_ms: float = ENCODE_MS) -> str:
    return rank(picture, encode_ms, work, RNG)[0][0]


def idle(names: str) -> dict[str, float]:
    return dict.fromkeys(names, 0.0)


def test_a_picture_always_goes_to_the_same_replica_and_pictures_to_all() -> None:
    homes = [first(f"p{n}", idle("abcd")) for n in range(400)]
    assert homes == [first(f"p{n}", idle("abcd")) for n in range(400)]
    assert min(Counter(homes).values()) > 60


def test_a_replica_that_goes_moves_its_own_pictures_only() -> None:
    before = {n: first(f"p{n}", idle("abcd")) for n in range(200)}
    after = {n: first(f"p{n}", idle("abd")) for n in range(200)}
    assert all(after[n] == before[n] for n in before if before[n] != "c")


def test_another_replica_is_worth_it_when_the_wait_is_shorter_by_an_encoding() -> None:
    [home], [second], [third] = rank("p", ENCODE_MS, idle("abc"), RNG)
    work = {home: ENCODE_MS, second: 0.0, third: 0.0}
    assert first("p", work) == home
    work[home] += 1
    assert rank("p", ENCODE_MS, work, RNG) == [[second], [home], [third]]
    work |= {home: 500.0, second: ENCODE_MS + 1}  # the further down, the more is asked for
    assert rank("p", ENCODE_MS, work, RNG) == [[third], [second], [home]]


def test_without_a_picture_the_less_busy_of_two() -> None:
    assert first(None, {"a": 900, "b": 10}) == "b"
    assert rank(None, 0.0, {}, RNG) == []
    assert two_choices({"a": 1}, RNG) == [["a"]]


def test_salts_part_pictures_and_every_request_is_some_work() -> None:
    image = ImageInput(b"", "d" * 64, 1, 1)
    asked = GenerationRequest("r", (Turn("user", ("?",)),), (image, image), (9, 144), work_ms=12.0)
    assert work_of(asked) == 12.0
    assert work_of(GenerationRequest("r", (), (), ())) > 0
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
    """2,000 pictures by Zipf's law, every cache holds a tenth of them; 8 requests a replica are on
    their way.
    """
    weights = 1 / np.arange(1, 2001)
    drawn = np.random.default_rng(1).choice(2000, 30_000, p=weights / weights.sum())
    one = Lru(200 * replicas)
    caches = {name: Lru(200) for name in "abcd"[:replicas]}
    work = dict.fromkeys(caches, 0.0)
    on_their_way: deque[tuple[str, float]] = deque()
    together = apart = 0
    for number, picture in enumerate(drawn.tolist()):
        if len(on_their_way) == 8 * replicas:
            name, done = on_their_way.popleft()
            work[name] -= done
        own = (3.0, 4.0, 8.0, 20.0)[number % 4]
        name = first(str(picture), work)
        work[name] += own
        on_their_way.append((name, own))
        together += one.ask(picture)
        apart += caches[name].ask(picture)
    assert apart >= 0.9 * together


def test_a_picture_that_half_of_all_ask_about_drowns_nobody() -> None:
    rng = random.Random(2)
    work = idle("abc")
    on_their_way: deque[tuple[str, float]] = deque()
    own = 6.0
    for _ in range(5000):
        if len(on_their_way) == 300:
            name, done = on_their_way.popleft()
            work[name] -= done
        picture = "hot" if rng.random() < 0.5 else f"p{rng.randrange(2000)}"
        name = first(picture, work)
        assert work[name] - min(work.values()) <= 2 * ENCODE_MS  # three replicas
        work[name] += own
        on_their_way.append((name, own))
