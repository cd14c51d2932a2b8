"""Shadow labels: a real Redis, the model that ships, a clock and an idleness of the test's own."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.announcement import EXAMPLES
from deploy.recorder import Lane, Recorder
from deploy.shadow import ShadowLabeller, agreement, load_of
from m3_backend.errors import FeaturesGoneError
from m3_backend.messages import ImageSlot, Turn
from m3_backend.scoring import Scorer
from m3_backend.training.worlds import draw
from predictor.label_records import SCHEMA
from predictor.metrics import exact_match
from predictor.record_store import CORRECTNESS, LABELS, RecordStore
from router.config import RouterConfig, ShadowConfig
from router.draws import Draws, order_of, read_order
from router.held_answers import HeldAnswers
from router.record_stream import RecordStream
from router.service import RoutingService
from router.trace import Trace
from tests.conftest import RedisServer
from tests.e2e.pictures import chat

QUESTION = "What colour is the background?"
BREAD = EXAMPLES / "bread.png"


def picture(seed: int) -> bytes:
    """One that m3-tiny is sure about: where it is not, rounding may tip the answer."""
    file = io.BytesIO()
    draw("shadow", seed, mix={"dominant": 1.0}).image.save(file, "PNG")
    return file.getvalue()


class World:
    """What a labeller sees: time, idleness, the queue, the stream of labels."""

    def __init__(
        self, server: RedisServer, scorer: Any, held: HeldAnswers | None = None, **config: Any
    ) -> None:
        self.now, self.idle = 0.0, True
        self.queue = RecordStream(server.url, "shadow", longest=100)
        self.labels = RecordStream(server.url, "labels", longest=100)
        self.labeller = ShadowLabeller(
            self.queue,
            self.labels.append,
            scorer.scores,
            lambda: self.idle,
            ShadowConfig(**config),
            replica="replica",
            held=held,
            clock=self.tick,
            wall=lambda: self.wall,
        )
        self.wall = float(server.client().time()[0])

    def tick(self) -> float:
        """Every look at the clock takes ten milliseconds."""
        self.now += 0.01
        return self.now

    def written(self, folder: Path) -> list[dict[str, Any]]:
        store = RecordStore(str(folder))
        Recorder([Lane(LABELS, self.labels)], store, name="r", batch=100).write_all()
        return [row for table in store.read(LABELS) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def scorer(m3_tiny: Any) -> Any:
    return m3_tiny._engine.scorer()


def answered(backend: Any, seed: int, *, data: bytes | None = None, **options: Any) -> Trace:
    """A request to the model that ships, drawn for a label; about a random picture if no other."""

    async def run() -> Trace:
        draws = Draws(ShadowConfig(uniform_share=1.0), random.Random(1))
        service = RoutingService(backend, backend.predictor, RouterConfig(), draws=draws)
        trace = Trace(f"{seed:032x}")
        body = chat(data or picture(seed), **{"question": QUESTION, "max_tokens": 12} | options)
        answer = await service.handle(json.dumps(body).encode(), trace)
        async for _ in answer:
            pass
        service.close()
        return trace

    return asyncio.run(run())


def test_a_label_says_what_every_scale_makes_of_it(
    m3_tiny: Any, scorer: Any, redis_server: RedisServer, tmp_path: Path
) -> None:
    """As the offline scorer does, which answers by itself at every scale."""
    world = World(redis_server, scorer, max_tokens=12)
    traces = [answered(m3_tiny, seed) for seed in range(3)]
    world.queue.append([order_of(trace) for trace in traces])
    world.now += 1000
    while world.labeller.step():
        world.now += 1000
    rows = {row["request_id"]: row for row in world.written(tmp_path)}
    assert set(rows) == {trace.request_id for trace in traces}
    offline = Scorer(m3_tiny._engine._runner.checkpoint)
    for seed, trace in enumerate(traces):
        row = rows[trace.request_id]
        assert trace.evidence is not None
        seen = trace.evidence.images[0]
        assert row["scales"] == [1, 9, 36, 144, 576]
        assert row["tokens_per_scale"] == list(seen.case.tokens)
        assert trace.decision is not None
        assert row["scale"] == trace.decision.scales[0]
        assert len(row["features"]) == 255
        image = replace(trace.draw.request.images[0], data=picture(seed))  # type: ignore[union-attr]
        [[answers]] = offline.answers([(image, [QUESTION])], max_tokens=12)
        assert isinstance(answers, tuple)
        assert row["agrees"] == [agreement(answer.matches) for answer in answers]
        expected = [answer.logprob for answer in answers]
        assert row["reference_logprob"] == pytest.approx(expected, abs=0.05)
        assert row["answer_tokens"] == len(answers[-1].token_ids)
    assert world.labeller.stats.outcomes == {("labelled", "low"): 3}
    assert world.queue.length() == 0


def test_what_every_scale_answers_is_held_for_feedback(
    m3_tiny: Any, scorer: Any, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Whatever turns out to be right, the label says which scales would have said it."""
    correct = RecordStream(redis_server.url, "correctness", longest=100)
    held = HeldAnswers(redis_server.url, correct.append, ttl_s=1e4, timeout_s=5.0)
    world = World(redis_server, scorer, held, max_tokens=12)
    question, data = "please read what is printed in cyan.", BREAD.read_bytes()  # scales differ
    offline = Scorer(m3_tiny._engine._runner.checkpoint)
    expected = {}
    for seed in range(4):
        trace = answered(m3_tiny, seed, data=data, question=question)
        world.queue.append([order_of(trace)])
        world.now += 1000
        assert world.labeller.step()
        image = replace(trace.draw.request.images[0], data=data)  # type: ignore[union-attr]
        [[answers]] = offline.answers([(image, [question])], max_tokens=12)
        assert isinstance(answers, tuple)
        right = answers[seed].text
        assert held.judged(trace.request_id, [right])
        expected[trace.request_id] = [exact_match(answer.text, [right]) for answer in answers]
    assert len({text for texts in expected.values() for text in texts}) == 2
    store = RecordStore(str(tmp_path))
    Recorder([Lane(CORRECTNESS, correct)], store, name="r", batch=100).write_all()
    rows = [row for table in store.read(CORRECTNESS) for row in table.to_pylist()]
    assert {row["request_id"]: row["correct"] for row in rows} == expected


@pytest.fixture
def ready(m3_tiny: Any, scorer: Any, redis_server: RedisServer) -> Iterator[World]:
    """With one drawn request in the queue, and time saved up."""
    world = World(redis_server, scorer)
    world.queue.append([order_of(answered(m3_tiny, 7))])
    world.now += 1000
    yield world


def test_features_are_kept_until_the_label_is_made(ready: World, m3_tiny: Any) -> None:
    cache = m3_tiny._engine._cache
    before = len(cache._pinned)
    assert before >= 1
    assert ready.labeller.step()
    assert len(cache._pinned) == before - 1


def test_it_waits_while_somebody_wants_an_answer(ready: World) -> None:
    ready.idle = False
    assert not ready.labeller.step()
    assert ready.queue.length() == 1
    ready.idle = True
    assert ready.labeller.step()


def test_it_gives_way_in_the_middle_and_tries_again(ready: World) -> None:
    looks = iter([True, True, True, False])
    ready.labeller._idle = lambda: next(looks)
    assert not ready.labeller.step()
    assert ready.labeller.stats.interrupted == 1
    assert ready.queue.length() == 1
    ready.labeller._idle = lambda: True
    ready.now += 1000
    assert ready.labeller.step()
    assert ready.queue.length() == 0


def test_the_budget_is_kept(ready: World, m3_tiny: Any) -> None:
    """Two seconds may be saved up; a label of five takes what a hundred and more give back."""
    scores = ready.labeller._scores

    def slow(*arguments: Any, **options: Any) -> Any:
        ready.now += 5.0
        return scores(*arguments, **options)

    ready.labeller._scores = slow
    ready.queue.append([order_of(answered(m3_tiny, 8))])
    assert ready.labeller.step()
    assert not ready.labeller.step()
    ready.now += 50.0
    assert not ready.labeller.step()
    ready.now += 20.0
    assert ready.labeller.step()
    assert 10.0 < ready.labeller.stats.seconds < 10.2


def test_what_is_too_old_is_given_up_even_while_others_are_served(ready: World) -> None:
    ready.idle = False
    ready.wall += 599
    ready.labeller.step()
    assert ready.queue.length() == 1
    ready.wall += 3
    ready.labeller.step()
    assert ready.queue.length() == 0
    assert ready.labeller.stats.outcomes == {("late", "low"): 1}


def test_a_picture_that_is_in_no_cache_is_counted_and_not_waited_for(
    ready: World, scorer: Any
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        order = read_order(ready.queue.older_than(10**14, 1)[0].data)
        image = replace(order.request.images[0], digest="0" * 64)
        return scorer.scores(replace(order.request, images=(image,)), max_tokens=4)

    with pytest.raises(FeaturesGoneError):
        gone()
    ready.labeller._scores = gone
    assert ready.labeller.step()
    assert ready.labeller.stats.outcomes == {("gone", "low"): 1}


def test_what_cannot_be_asked_is_counted_as_failed(ready: World, scorer: Any) -> None:
    def impossible(request: Any, **options: Any) -> Any:
        long = (Turn("user", (ImageSlot(0), "word " * 5000)),)
        return scorer.scores(replace(request, turns=long), **options)

    ready.queue.append([b"no order"])
    ready.labeller._scores = impossible
    assert ready.labeller.step()
    ready.now += 1000
    assert ready.labeller.step()
    assert ready.labeller.stats.outcomes == {("failed", "low"): 2}


def test_a_label_holds_no_text(ready: World) -> None:
    assert ready.labeller.step()
    [entry] = ready.labels.older_than(10**14, 1)
    assert QUESTION.rsplit(maxsplit=1)[-1].encode() not in entry.data
    assert "question" not in SCHEMA.names


def test_loads_have_names() -> None:
    assert [load_of(p) for p in (None, 0.0, 0.3, 0.75, 2.0)] == [
        *("low", "low", "half", "full", "full"),
    ]
    assert [agreement(m) for m in ([True] * 16, [True] * 15 + [False], [True] * 19 + [False])] == [
        *(1.0, 0.0, 0.95),
    ]
