"""The engine: mixed scales in one batch, streaming, sampling, cancelling, refusals and crashes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine, _passes
from m3_backend.errors import (
    BackendError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    InvalidScaleError,
    OverloadedError,
    ServiceError,
)
from m3_backend.feature_cache import FeatureCache
from m3_backend.kv_cache import Span
from m3_backend.messages import (
    Delta,
    Event,
    Finished,
    GenerationRequest,
    ImageInput,
    ImageSlot,
    Sampling,
    Started,
    Turn,
    digest_of,
)
from m3_backend.prompt import Prompt
from m3_backend.scheduler import Piece, Step
from tests.conftest import RedisServer
from tests.m3_backend.support import LLAVA15, NEXT, golden_image, picture

SCALES = (1, 9, 36, 144, 576)
IMAGE = picture(1)
TWELVE = Sampling(max_tokens=12)

NewEngine = Callable[..., TorchEngine]


@pytest.fixture
def new_engine() -> Iterator[NewEngine]:
    opened: list[TorchEngine] = []

    def make(
        checkpoint: Checkpoint, wall: Callable[[], float] | None = None, **settings: Any
    ) -> TorchEngine:
        clocks = {} if wall is None else {"wall": wall}
        engine = TorchEngine(
            checkpoint, FeatureCache(1 << 24), EngineSettings(**settings), **clocks
        )
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(speaking: Checkpoint) -> Iterator[TorchEngine]:
    """For tests that leave it as they find it."""
    engine = TorchEngine(speaking, FeatureCache(1 << 24), EngineSettings(replica="one"))
    yield engine
    engine.close()


def request(
    question: str = "What is in the picture?",
    scale: int = 9,
    *,
    image: ImageInput = IMAGE,
    sampling: Sampling = TWELVE,
    **options: Any,
) -> GenerationRequest:
    turns = (Turn("user", (ImageSlot(0), question)),)
    return GenerationRequest("r", turns, (image,), (scale,), sampling, **options)


async def collect(stream: AsyncGenerator[Event, None]) -> list[Event]:
    return [event async for event in stream]


def deltas(events: list[Event]) -> list[Delta]:
    return [event for event in events if isinstance(event, Delta)]


def tokens_of(events: list[Event]) -> list[int]:
    return [token for delta in deltas(events) for token in delta.token_ids]


def text_of(events: list[Event]) -> str:
    return "".join(delta.text for delta in deltas(events))


async def until_idle(engine: TorchEngine) -> None:
    async with asyncio.timeout(30):
        while engine.stats().running or engine.stats().waiting:
            await asyncio.sleep(0.001)


def reference(folder: Path) -> tuple[Prompt, dict[int, list[int]]]:
    expected = json.loads((folder / "expected.json").read_text())
    greedy = {int(scale): tokens for scale, tokens in expected["greedy_tokens"].items()}
    return Prompt.from_marked(expected["input_ids"]), greedy


@pytest.mark.parametrize("folder", [LLAVA15, NEXT], ids=lambda folder: folder.name)
async def test_ten_requests_of_mixed_scales_answer_as_the_reference_does_alone(
    folder: Path, llava15: Checkpoint, llava_next: Checkpoint, new_engine: NewEngine
) -> None:
    checkpoint = llava15 if folder is LLAVA15 else llava_next
    engine = new_engine(checkpoint, max_batch=10)
    prompt, greedy = reference(folder)
    image = golden_image(folder)
    streams = [
        engine.generate_ids(prompt, [image], [scale], TWELVE, ignore_eos=True)
        for scale in SCALES * 2
    ]
    answers = await asyncio.gather(*map(collect, streams))
    for scale, events in zip(SCALES * 2, answers, strict=True):
        assert tokens_of(events) == greedy[scale]
        assert events[-1] == dataclasses.replace(events[-1], reason="length", completion_tokens=12)
    assert engine.stats().cache.encodes == 1


async def test_in_bfloat16_company_changes_an_answer_only_at_a_near_tie(
    new_engine: NewEngine,
) -> None:
    engine = new_engine(open_checkpoint(LLAVA15, dtype="bfloat16", device="cpu"), max_batch=10)
    prompt, _ = reference(LLAVA15)
    image = golden_image(LLAVA15)
    sampling = Sampling(max_tokens=12, top_logprobs=2)

    def ask(scale: int) -> AsyncGenerator[Event, None]:
        return engine.generate_ids(prompt, [image], [scale], sampling, ignore_eos=True)

    alone = {scale: await collect(ask(scale)) for scale in SCALES}
    together = await asyncio.gather(*(collect(ask(scale)) for scale in SCALES * 2))
    for scale, events in zip(SCALES * 2, together, strict=True):
        pairs = zip(tokens_of(events), tokens_of(alone[scale]), strict=True)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if parted is not None:
            (first, second) = deltas(alone[scale])[parted].logprobs[0].top
            assert first[1] - second[1] < 0.05  # bfloat16 keeps eight bits


async def test_requests_that_come_and_go_do_not_touch_each_other(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_batch=3, prefill_budget=64)
    asked = [
        request(f"number {i}", SCALES[i % 5], image=picture(i % 3), sampling=Sampling(max_tokens=n))
        for i, n in enumerate([3, 20, 1, 9, 14, 2, 17, 5, 11, 8, 1, 6])
    ]
    alone = [await collect(engine.generate(one)) for one in asked]
    together = await asyncio.gather(*(collect(engine.generate(one)) for one in asked))
    assert list(map(tokens_of, together)) == list(map(tokens_of, alone))
    assert list(map(text_of, together)) == list(map(text_of, alone))


async def test_events_tell_where_the_features_came_from(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, replica="one")
    first = await collect(engine.generate(request(scale=36)))
    again = await collect(engine.generate(request(scale=9)))
    salted = await collect(engine.generate(request(scale=9, cache_salt="tenant")))
    levels = [
        events[0].cache for events in (first, again, salted) if isinstance(events[0], Started)
    ]
    assert levels == [("miss",), ("memory",), ("miss",)]
    started = again[0]
    assert isinstance(started, Started)
    assert started.image_tokens == (9,) and started.replica == "one"
    assert started.encode_ms == 0 and started.degraded == ()
    assert engine.stats().cache.encodes == 2


async def test_replicas_share_features_through_redis_and_do_without_it(
    speaking: Checkpoint, redis_server: RedisServer
) -> None:
    def replica() -> tuple[TorchEngine, FeatureCache]:
        cache = FeatureCache(0, redis_server.url, timeout_s=2, stall_s=2)
        return TorchEngine(speaking, cache, EngineSettings()), cache

    (first, first_cache), (second, _) = replica(), replica()
    try:
        miss = await collect(first.generate(request(scale=144)))
        first_cache.flush()
        hit = await collect(second.generate(request(scale=144)))
        redis_server.kill()
        without = await collect(second.generate(request(scale=144, cache_salt="unseen")))
    finally:
        first.close()
        second.close()
    started = [events[0] for events in (miss, hit, without) if isinstance(events[0], Started)]
    assert [event.cache for event in started] == [("miss",), ("redis",), ("miss",)]
    assert [event.degraded for event in started] == [(), (), ("redis",)]
    assert tokens_of(miss) == tokens_of(hit) == tokens_of(without)


async def test_several_images_each_have_their_own_scale(engine: TorchEngine) -> None:
    turns = (
        Turn("user", (ImageSlot(0), ImageSlot(1), "Compare.")),
        Turn("assistant", ("They differ.",)),
        Turn("user", (ImageSlot(2), "And this?")),
    )
    images = (picture(1), picture(2), picture(3))
    several = GenerationRequest("r", turns, images, (9, 144, 1), TWELVE)
    started, *_, finished = await collect(engine.generate(several))
    assert isinstance(started, Started) and isinstance(finished, Finished)
    assert started.image_tokens == (9, 144, 1)
    swapped = dataclasses.replace(several, images=(images[1], images[0], images[2]))
    once, other = await asyncio.gather(
        collect(engine.generate(several)), collect(engine.generate(swapped))
    )
    assert tokens_of(once) != tokens_of(other)


async def test_a_question_without_a_picture_is_answered(engine: TorchEngine) -> None:
    plain = GenerationRequest("r", (Turn("user", ("What is?",)),), (), (), TWELVE)
    assert len(tokens_of(await collect(engine.generate(plain)))) == 12


@pytest.mark.parametrize("length", [1, 3])
async def test_a_stop_string_ends_the_answer_before_it(engine: TorchEngine, length: int) -> None:
    sampling = Sampling(max_tokens=40, temperature=1.0, seed=5)
    whole = text_of(await collect(engine.generate(request(sampling=sampling))))
    stop = whole[len(whole) // 2 :][:length]
    stopped = dataclasses.replace(sampling, stop=("never there", stop))
    events = await collect(engine.generate(request(sampling=stopped)))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Finished) and events[-1].reason == "stop"


async def test_end_of_sequence_ends_the_answer(engine: TorchEngine, speaking: Checkpoint) -> None:
    """A head that always says </s> leaves an empty, finished answer."""
    head = speaking.model.language_model.lm_head
    before = head.weight.clone()
    runner = engine._runner
    original = runner.logits

    def says_end(hidden: Tensor) -> Tensor:
        logits = original(hidden)
        logits[:, 2] = logits.max() + 1
        return logits

    runner.logits = says_end  # type: ignore[method-assign]
    try:
        events = await collect(engine.generate(request()))
    finally:
        del runner.logits
    assert torch.equal(head.weight, before)
    assert text_of(events) == ""
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].completion_tokens) == ("stop", 1)


async def test_a_seed_repeats_an_answer_whoever_else_is_in_the_batch(engine: TorchEngine) -> None:
    def sampled(seed: int | None) -> GenerationRequest:
        return request(sampling=Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=seed))

    alone = await collect(engine.generate(sampled(7)))
    crowd = [sampled(7), sampled(8), request(), sampled(None), sampled(7), request(scale=144)]
    answers = await asyncio.gather(*(collect(engine.generate(one)) for one in crowd))
    assert tokens_of(answers[0]) == tokens_of(answers[4]) == tokens_of(alone)
    assert tokens_of(answers[1]) != tokens_of(alone)
    assert tokens_of(answers[3]) != tokens_of(alone)


async def test_log_probabilities_belong_to_the_tokens(engine: TorchEngine) -> None:
    events = await collect(
        engine.generate(request(sampling=Sampling(max_tokens=5, top_logprobs=3)))
    )
    for delta in deltas(events):
        (entry,) = delta.logprobs
        assert len(entry.top) == 3
        assert entry.logprob == entry.top[0][1]  # greedy: the best is the one
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]
    none = await collect(engine.generate(request()))
    assert all(delta.logprobs == () for delta in deltas(none))


async def test_streamed_text_is_the_text_of_the_tokens(
    engine: TorchEngine, speaking: Checkpoint
) -> None:
    """A random model babbles single bytes: whole characters must come out all the same."""
    assert speaking.tokenizer is not None
    sampling = Sampling(max_tokens=150, temperature=1.2, seed=3)
    events = await collect(engine.generate(request(sampling=sampling)))
    decoded = speaking.tokenizer.decode(tokens_of(events))
    assert decoded.removeprefix(" ").rstrip("\ufffd") == text_of(events).rstrip("\ufffd")
    assert any(delta.text == "" for delta in deltas(events))


async def test_closing_the_iterator_frees_the_slot_within_a_step(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_batch=1)
    steps = []
    decode = engine._runner.decode

    def counted(*arguments: Any) -> Tensor:
        steps.append(1)
        return decode(*arguments)

    engine._runner.decode = counted  # type: ignore[method-assign]
    stream = engine.generate(request(sampling=Sampling(max_tokens=3000)))
    async for event in stream:
        if isinstance(event, Delta):
            break
    waiting = asyncio.ensure_future(collect(engine.generate(request())))
    await stream.aclose()
    at_closing = len(steps)
    events = await waiting  # the next request gets the only slot
    assert len(tokens_of(events)) == 12
    assert len(steps) - at_closing <= 11 + 2
    await until_idle(engine)


async def test_cancelling_the_task_cancels_the_request(engine: TorchEngine) -> None:
    task = asyncio.ensure_future(
        collect(engine.generate(request(sampling=Sampling(max_tokens=3000))))
    )
    while not engine.stats().running:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(engine)


async def test_a_request_over_the_bound_is_refused_with_a_time(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_batch=1, max_waiting=1)
    long = request(sampling=Sampling(max_tokens=3000))
    streams = [engine.generate(long) for _ in range(3)]
    admitted = [asyncio.ensure_future(anext(stream)) for stream in streams[:2]]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as caught:
        await anext(streams[2])
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1
    assert isinstance(await admitted[0], Started)
    assert engine.stats().outstanding_tokens > 2000
    await streams[0].aclose()
    assert isinstance(await admitted[1], Started)
    await streams[1].aclose()
    await until_idle(engine)
    assert engine.stats().outstanding_tokens == 0


async def test_an_absurd_limit_counts_no_more_than_the_context(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking, max_batch=1, max_waiting=0, max_context=200)
    pixels, release = engine._runner.pixels, threading.Event()

    def waits(image: ImageInput) -> Tensor:
        assert release.wait(30)
        return pixels(image)

    monkeypatch.setattr(engine._runner, "pixels", waits)
    absurd = request(scale=1, sampling=Sampling(max_tokens=10**9))
    stream = engine.generate(absurd)
    admitted = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    try:
        assert 200 <= engine.stats().outstanding_tokens <= 400
        with pytest.raises(OverloadedError) as caught:
            await collect(engine.generate(absurd))
    finally:
        release.set()
    within = max(1.0, 400 * engine.info.costs.decode_token_ms / 1e3)
    assert caught.value.retry_after_s is not None and caught.value.retry_after_s <= within
    await admitted
    await stream.aclose()
    await until_idle(engine)


async def test_deadlines_hold_before_and_during_generation(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    now = [1000.0]
    engine = new_engine(speaking, wall=lambda: now[0])
    with pytest.raises(DeadlineExceededError):
        await collect(engine.generate(request(deadline=999.0)))
    assert engine.stats().cache.encodes == 0
    stream = engine.generate(request(deadline=1001.0, sampling=Sampling(max_tokens=3000)))
    with pytest.raises(DeadlineExceededError):
        async for event in stream:
            if isinstance(event, Delta):
                now[0] = 1002.0
    await until_idle(engine)


async def test_images_are_not_encoded_once_the_deadline_has_passed(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    engine = new_engine(speaking, wall=lambda: now[0])
    pixels = engine._runner.pixels

    def slow(image: ImageInput) -> Tensor:
        now[0] = 1002.0
        return pixels(image)

    monkeypatch.setattr(engine._runner, "pixels", slow)
    turns = (Turn("user", (ImageSlot(0), ImageSlot(1), ImageSlot(2), "Compare.")),)
    images = (picture(1), picture(2), picture(3))
    with pytest.raises(DeadlineExceededError):
        await collect(
            engine.generate(GenerationRequest("r", turns, images, (1, 1, 1), deadline=1001.0))
        )
    assert engine.stats().cache.encodes == 1


async def test_images_are_not_encoded_once_the_caller_has_gone(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)
    pixels, begun, gone = engine._runner.pixels, threading.Event(), threading.Event()

    def waits(image: ImageInput) -> Tensor:
        begun.set()
        assert gone.wait(30)
        return pixels(image)

    monkeypatch.setattr(engine._runner, "pixels", waits)
    turns = (Turn("user", (ImageSlot(0), ImageSlot(1), "Compare.")),)
    asked = GenerationRequest("r", turns, (picture(1), picture(2)), (1, 1))
    task = asyncio.ensure_future(collect(engine.generate(asked)))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gone.set()
    await until_idle(engine)
    assert engine.stats().cache.encodes == 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scales": (100,)}, InvalidScaleError),
        ({"scales": ()}, InvalidRequestError),
        ({"turns": (Turn("user", ("no picture",)),)}, InvalidRequestError),
        ({"turns": (Turn("user", (ImageSlot(1), "which?")),)}, InvalidRequestError),
        ({"turns": ()}, InvalidRequestError),
        ({"turns": (Turn("user", (ImageSlot(0), "long " * 3000)),)}, ContextLengthError),
    ],
)
async def test_what_cannot_be_served_is_refused_before_any_work(
    change: dict[str, Any], error: type[ServiceError], engine: TorchEngine
) -> None:
    before = engine.stats().cache
    with pytest.raises(error):
        await collect(engine.generate(dataclasses.replace(request(), **change)))
    assert engine.stats().cache == before


async def test_broken_images_and_false_sizes_are_refused(
    engine: TorchEngine, llava_next: Checkpoint, new_engine: NewEngine
) -> None:
    broken = ImageInput(b"GIF89a", digest_of(b"GIF89a"), 10, 10)
    with pytest.raises(InvalidImageError):
        await collect(engine.generate(request(image=broken)))
    tiled = new_engine(llava_next)
    prompt, _ = reference(NEXT)
    lie = dataclasses.replace(golden_image(NEXT), width=600, height=100)
    with pytest.raises(InvalidImageError):
        await collect(tiled.generate_ids(prompt, [lie], [1], TWELVE))
    with pytest.raises(BackendError, match="tokenizer"):
        await collect(tiled.generate(request()))


async def test_the_answer_is_cut_at_the_context(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_context=200)
    assert engine.info.max_context == 200
    started, *_, finished = await collect(
        engine.generate(request(scale=1, sampling=Sampling(max_tokens=10_000)))
    )
    assert isinstance(started, Started) and isinstance(finished, Finished)
    assert finished.reason == "length"
    assert started.prompt_tokens + finished.completion_tokens == 200


async def test_a_crash_in_decode_ends_those_requests_and_no_others(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking)
    expected = tokens_of(await collect(engine.generate(request())))
    decode = engine._runner.decode

    def crash(*_: Any) -> Tensor:
        engine._runner.decode = decode  # type: ignore[method-assign]
        raise RuntimeError("device lost at 0x7fff")

    engine._runner.decode = crash  # type: ignore[method-assign]
    with pytest.raises(BackendError) as caught:
        await collect(engine.generate(request()))
    assert "0x7fff" not in caught.value.message
    assert tokens_of(await collect(engine.generate(request()))) == expected
    await until_idle(engine)


async def test_a_crash_in_prefill_leaves_the_running_answers_alone(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_batch=4)
    calm = request(sampling=Sampling(max_tokens=60))
    expected = tokens_of(await collect(engine.generate(calm)))
    prefill = engine._runner.prefill

    def crash_when_long(spans: list[Span], prompts: list[Tensor]) -> Tensor:
        if any(span.end > 400 for span in spans):
            raise RuntimeError("no memory")
        return prefill(spans, prompts)

    engine._runner.prefill = crash_when_long  # type: ignore[method-assign, assignment]
    asked = [calm, request(scale=576), calm, request(scale=576), calm]
    results = await asyncio.gather(
        *(collect(engine.generate(one)) for one in asked), return_exceptions=True
    )
    for one, result in zip(asked, results, strict=True):
        if one is calm:
            assert isinstance(result, list) and tokens_of(result) == expected
        else:
            assert isinstance(result, BackendError)


async def test_a_short_prompt_that_crashes_beside_answers_takes_none_of_them_along(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking, max_batch=4)
    calm = request(sampling=Sampling(max_tokens=200))
    expected = tokens_of(await collect(engine.generate(calm)))
    prefill, beside = engine._runner.prefill, []

    def crash(spans: list[Span], prompts: list[Tensor]) -> Tensor:
        if any(span.new > 1 for span in spans) and bad:
            beside.append(len(spans))
            raise RuntimeError("no memory")
        return prefill(spans, prompts)

    bad = False
    monkeypatch.setattr(engine._runner, "prefill", crash)
    stream = engine.generate(calm)
    events = [await anext(stream), await anext(stream)]  # it is answering
    bad = True
    with pytest.raises(BackendError):
        await collect(engine.generate(request("Why?")))
    bad = False
    events += await collect(stream)
    assert tokens_of(events) == expected
    assert beside == [2, 1]  # with the answer, then without it


def test_short_prompts_go_with_the_answers_and_before_long_ones() -> None:
    class Prompt:
        def __init__(self, length: int, cached: int = 0) -> None:
            self.length, self.cached = length, cached

    answering, short, long, rest = Prompt(50, 49), Prompt(60), Prompt(600), Prompt(600, 570)
    step: Any = Step(
        decode=(answering,), prefill=(Piece(long, 40), Piece(short, 60), Piece(rest, 30))
    )
    passes = [[piece.request for piece in pieces] for pieces in _passes(step)]
    assert passes == [[answering, short, rest], [long]]
    assert _passes(Step()) == []


async def test_closing_ends_open_requests_and_refuses_new_ones(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking)
    stream = engine.generate(request(sampling=Sampling(max_tokens=3000)))
    assert isinstance(await anext(stream), Started)
    engine.close()
    with pytest.raises(BackendError) as lost:
        await collect(stream)
    with pytest.raises(BackendError) as refused:
        await collect(engine.generate(request()))
    assert (lost.value.code, refused.value.code) == ("replica_lost", "replica_stopping")


async def test_an_engine_whose_memory_is_lost_stops_and_says_so(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking)

    def lost(*_: Any) -> None:
        raise RuntimeError("device lost")

    engine._scheduler.memory.release = lost  # type: ignore[method-assign]
    asked = [request(sampling=Sampling(max_tokens=n)) for n in (2, 200, 200)]
    results = await asyncio.gather(
        *(collect(engine.generate(one)) for one in asked), return_exceptions=True
    )
    assert any(isinstance(result, BackendError) for result in results)
    engine._thread.join(30)
    with pytest.raises(BackendError, match="replaced"):
        engine.stats()
    with pytest.raises(BackendError):
        await collect(engine.generate(request()))


@pytest.mark.parametrize("part", ["prefill", "embed", "features"])
async def test_an_engine_whose_device_is_lost_stops_and_says_so(
    part: str, speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)

    def lost(*_: Any) -> Tensor:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._runner, part, lost)
    for _ in range(2):
        with pytest.raises(BackendError):
            await collect(engine.generate(request()))
    assert engine.stats().running == 0
    with pytest.raises(BackendError):
        await collect(engine.generate(request()))
    engine._thread.join(30)
    with pytest.raises(BackendError, match="replaced"):
        engine.stats()
    with pytest.raises(BackendError, match="shutting down"):
        await collect(engine.generate(request()))


async def test_requests_in_flight_end_with_the_lost_device(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking, max_batch=1)
    attempts = []

    def lost(*_: Any) -> Tensor:
        attempts.append(1)
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._runner, "prefill", lost)
    asked = [collect(engine.generate(request())) for _ in range(8)]
    async with asyncio.timeout(30):
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(result, BackendError) for result in results)
    assert len(attempts) == 3


async def test_failures_between_successes_stop_nothing(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)
    prefill = engine._runner.prefill

    def crash_when_long(spans: list[Span], prompts: list[Tensor]) -> Tensor:
        if any(span.end > 400 for span in spans):
            raise RuntimeError("no memory")
        return prefill(spans, prompts)

    monkeypatch.setattr(engine._runner, "prefill", crash_when_long)
    for scale in (576, 576, 9, 576, 576, 9):
        answer = collect(engine.generate(request(scale=scale)))
        if scale == 576:
            with pytest.raises(BackendError):
                await answer
        else:
            assert len(tokens_of(await answer)) == 12
    for _ in range(3):  # a bad question is not the device's fault
        with pytest.raises(BackendError):
            await collect(engine.generate(request("\ud800")))
    await until_idle(engine)


async def test_the_engine_knows_its_own_costs(engine: TorchEngine) -> None:
    costs = engine.info.costs
    assert costs.encode_ms > 0 and costs.decode_token_ms > 0 and costs.prefill_ms(576) > 0
    assert costs.request_ms(600, 10) > costs.request_ms(30, 10, cached=True)


async def test_the_packaged_model_answers() -> None:
    engine = TorchEngine.open("m3-tiny", device="cpu")
    try:
        started, *_, finished = await collect(engine.generate(request(scale=36)))
    finally:
        engine.close()
    assert isinstance(started, Started) and started.image_tokens == (36,)
    assert isinstance(finished, Finished) and finished.completion_tokens >= 1


class Gate:
    """Lets the engine's encodings through one at a time, and knows whose they were."""

    def __init__(self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.waiting, self._through = threading.Semaphore(0), threading.Semaphore(0)
        self._pixels = engine._runner.pixels
        monkeypatch.setattr(engine._runner, "pixels", self._gated)

    def _gated(self, image: ImageInput) -> Tensor:
        self.begun.append(image.digest)
        self.waiting.release()
        assert self._through.acquire(timeout=30)
        return self._pixels(image)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.waiting.acquire, timeout=30)

    def open(self, times: int = 1) -> None:
        self._through.release(times)


async def in_line(engine: TorchEngine, count: int) -> None:
    async with asyncio.timeout(30):
        while engine.stats().line.count != count:
            await asyncio.sleep(0.001)


async def test_batch_waits_behind_interactive_while_images_are_encoded(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking, preparation_threads=1)
    gate = Gate(engine, monkeypatch)
    images = [picture(seed) for seed in range(20, 24)]
    kinds = ("interactive", "batch", "batch", "interactive")
    tasks = []
    for count, (image, priority) in enumerate(zip(images, kinds, strict=True), start=1):
        asked = request(image=image, priority=priority)
        tasks.append(asyncio.ensure_future(collect(engine.generate(asked))))
        await in_line(engine, count)
    gate.open(4)
    for answer in await asyncio.gather(*tasks):
        assert isinstance(answer[-1], Finished)
    order = [images.index(next(i for i in images if i.digest == d)) for d in gate.begun]
    assert order == [0, 3, 1, 2]


async def test_a_deadline_that_passes_in_the_queue_is_never_prefilled(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    engine = new_engine(speaking, wall=lambda: now[0], max_batch=1)
    prefilled: list[int] = []
    prefill = engine._runner.prefill

    def counted(prompts: Any, *rest: Any) -> Tensor:
        prefilled.append(len(prompts))
        return prefill(prompts, *rest)

    monkeypatch.setattr(engine._runner, "prefill", counted)
    first = engine.generate(request(sampling=Sampling(max_tokens=3000)))
    assert isinstance(await anext(first), Started)
    late = asyncio.ensure_future(collect(engine.generate(request(deadline=1900.0))))
    await in_line(engine, 1)
    now[0] = 1900.0
    with pytest.raises(DeadlineExceededError):
        await late
    await first.aclose()
    await until_idle(engine)
    assert prefilled == [1]


async def test_what_would_wait_beyond_its_deadline_is_refused_at_once(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking, wall=lambda: 1000.0, preparation_threads=1)
    gate = Gate(engine, monkeypatch)
    costs = dataclasses.replace(engine.info.costs, encode_ms=3000.0)
    engine._info = dataclasses.replace(engine.info, costs=costs)
    waiting = [
        asyncio.ensure_future(
            collect(engine.generate(request(image=picture(seed), priority=priority)))
        )
        for seed, priority in ((30, "interactive"), (31, "batch"))
    ]
    await in_line(engine, 2)
    with pytest.raises(OverloadedError) as caught:  # behind three seconds, and three of its own
        await collect(engine.generate(request(deadline=1005.0)))
    assert caught.value.retry_after_s == pytest.approx(3.0, rel=0.2)
    with pytest.raises(OverloadedError):  # batch is behind both
        await collect(engine.generate(request(deadline=1008.0, priority="batch")))
    fits = asyncio.ensure_future(collect(engine.generate(request(deadline=1008.0))))
    await in_line(engine, 3)
    gate.open(3)
    await asyncio.gather(*waiting, fits)
    assert engine.stats().line.count == 0


async def test_the_pace_is_measured_while_requests_wait_and_only_then(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking, max_batch=2)
    broken = dataclasses.replace(IMAGE, data=IMAGE.data[:-40], digest="0" * 64)
    with pytest.raises(InvalidImageError):
        await collect(engine.generate(request(image=broken)))
    assert engine.stats().pace == 1.0
    assert engine._busy_since is None  # so that the time until the next one does not count
    await asyncio.gather(
        *(collect(engine.generate(request(image=picture(seed)))) for seed in range(40, 52))
    )
    stats = engine.stats()
    assert stats.pace != 1.0
    assert engine._busy_since is None
    assert stats.line.count == 0
    assert stats.answer_tokens == pytest.approx(12.0)


class Prefills:
    """Counts the prompt tokens that the engine computes."""

    def __init__(self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: list[int] = []
        self._prefill = engine._runner.prefill
        monkeypatch.setattr(engine._runner, "prefill", self._counted)

    def _counted(self, spans: list[Span], prompts: list[Tensor]) -> Tensor:
        self.pieces += [span.new for span in spans if span.new > 1]
        return self._prefill(spans, prompts)


async def test_a_second_question_computes_nothing_of_the_picture(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)
    other = request("How many colours are there?", 144)
    expected = tokens_of(await collect(new_engine(speaking).generate(other)))
    prefills = Prefills(engine, monkeypatch)
    first = await collect(engine.generate(request(scale=144)))
    looked_up = engine.stats().cache
    second = await collect(engine.generate(other))
    assert isinstance(first[0], Started) and isinstance(second[0], Started)
    assert (first[0].cache, second[0].cache) == (("miss",), ("prefix",))
    assert second[0].image_tokens == (144,) and second[0].prompt_tokens > 144
    assert tokens_of(second) == expected
    assert engine.stats().cache == looked_up
    assert sum(prefills.pieces) < first[0].prompt_tokens + 40
    memory = engine.stats().memory
    assert (memory.held, memory.joined) == (0, 1)
    assert 144 < memory.idle < first[0].prompt_tokens


@pytest.mark.parametrize("change", [{"cache_salt": "tenant"}, {"scales": (36,)}])
async def test_a_prefix_is_of_one_salt_and_one_scale(
    change: dict[str, Any], speaking: Checkpoint, new_engine: NewEngine
) -> None:
    engine = new_engine(speaking)
    await collect(engine.generate(request(scale=144)))
    events = await collect(engine.generate(dataclasses.replace(request(scale=144), **change)))
    assert isinstance(events[0], Started) and events[0].cache != ("prefix",)
    assert engine.stats().memory.joined == 0


async def test_little_memory_answers_the_same_only_later(
    speaking: Checkpoint, new_engine: NewEngine
) -> None:
    """Room for one request of full length: prompts in pieces, preempted, prefixes evicted."""
    asked = [
        request(
            f"number {i}", SCALES[i % 5], image=picture(i % 2), sampling=Sampling(max_tokens=90)
        )
        for i in range(12)
    ]
    plenty = new_engine(speaking)
    expected = [tokens_of(await collect(plenty.generate(one))) for one in asked]
    tight = new_engine(speaking, kv_tokens=900, max_context=900, prefill_budget=50)
    answers = await asyncio.gather(*(collect(tight.generate(one)) for one in asked))
    assert list(map(tokens_of, answers)) == expected
    await until_idle(tight)
    memory = tight.stats().memory
    assert memory.preempted and memory.held == 0 and memory.tokens == 900


async def test_a_prefix_that_was_evicted_on_the_way_is_computed_again(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)
    expected = tokens_of(await collect(engine.generate(request(scale=144))))
    memory = engine._scheduler.memory
    schedule = engine._scheduler.schedule

    def evicted() -> Any:
        if memory.idle:
            memory._evict()
        return schedule()

    monkeypatch.setattr(engine._scheduler, "schedule", evicted)
    events = await collect(engine.generate(request(scale=144)))
    assert tokens_of(events) == expected
    assert isinstance(events[0], Started) and events[0].cache == ("memory",)


async def test_questions_about_one_picture_at_once_prefill_it_once(
    speaking: Checkpoint, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(speaking)
    asked = [request(f"question {i}?", 576) for i in range(6)]
    alone = [tokens_of(await collect(new_engine(speaking).generate(one))) for one in asked]
    prefills = Prefills(engine, monkeypatch)
    answers = await asyncio.gather(*(collect(engine.generate(one)) for one in asked))
    assert list(map(tokens_of, answers)) == alone
    assert 576 < sum(prefills.pieces) < 576 + 6 * 40
