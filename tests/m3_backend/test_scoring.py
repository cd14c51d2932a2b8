"""Labels in bulk are what the engine answers and what a plain reference computes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.errors import (
    CheckpointError,
    ContextLengthError,
    InvalidImageError,
    InvalidScaleError,
    ServiceError,
)
from m3_backend.feature_cache import FeatureCache
from m3_backend.messages import Delta, GenerationRequest, ImageInput, ImageSlot, Sampling, Turn
from m3_backend.runner import ModelRunner
from m3_backend.scoring import ScaleAnswer, Scorer
from m3_backend.training.worlds import draw
from m3_backend.vision import pool
from tests.m3_backend.support import NEXT, image_input, picture, write_llava_hf, write_tokenizer

SCALES = (1, 9, 36, 144, 576)
QUESTIONS = ["What is in the picture?", "how many", "number 7 and 7919 and what is in it?"]
IMAGE = picture(4)

Answers = tuple[ScaleAnswer, ...]


@pytest.fixture(scope="module")
def scorer(speaking: Checkpoint) -> Scorer:
    return Scorer(speaking, batch=4)


def succeeded(found: list[list[Answers | ServiceError]]) -> list[Answers]:
    """All answers in a row, none of which may be an error."""
    flat = [each for of_one in found for each in of_one]
    assert not any(isinstance(each, ServiceError) for each in flat)
    return [each for each in flat if not isinstance(each, ServiceError)]


@torch.inference_mode()
def plain_answers(
    checkpoint: Checkpoint, image: ImageInput, question: str, max_tokens: int
) -> list[tuple[tuple[int, ...], tuple[bool, ...], float]]:
    """Tokens, matches and log-probability per scale; everything anew for every token."""
    runner = ModelRunner(checkpoint, tokens=1)
    prompt = Scorer(checkpoint, batch=1, context=1).prompt(question)
    features = runner.encode(image)

    def logprobs(scale: int, answer: list[int]) -> Tensor:
        pooled = pool(features, checkpoint.ladder, scale)
        asked = runner.embed(prompt, [image], [pooled])
        embeddings = torch.cat([asked, runner.embed_tokens(answer)])
        output = checkpoint.model.language_model(inputs_embeds=embeddings[None], use_cache=False)
        return output.logits[0, len(asked) - 1 :].float().log_softmax(-1)

    greedy: list[list[int]] = []
    for scale in checkpoint.ladder.scales:
        answer: list[int] = []
        while len(answer) < max_tokens and not (answer and answer[-1] in checkpoint.eos):
            answer.append(int(logprobs(scale, answer)[-1].argmax()))
        greedy.append(answer)
    finest = torch.tensor(greedy[-1])
    rows = []
    for scale, answer in zip(checkpoint.ladder.scales, greedy, strict=True):
        forced = logprobs(scale, greedy[-1])[:-1]
        matches = tuple((forced.argmax(-1) == finest).tolist())
        rows.append((tuple(answer), matches, float(forced.gather(1, finest[:, None]).sum())))
    return rows


def assert_as_plain(
    checkpoint: Checkpoint,
    inquiries: list[tuple[ImageInput, list[str]]],
    *,
    batch: int,
    max_tokens: int,
) -> list[Answers]:
    scorer = Scorer(checkpoint, batch=batch, context=2048)
    found = succeeded(scorer.answers(inquiries, max_tokens=max_tokens))
    asked = [(image, question) for image, questions in inquiries for question in questions]
    for (image, question), row in zip(asked, found, strict=True):
        plain = plain_answers(checkpoint, image, question, max_tokens)
        assert [answer.scale for answer in row] == list(checkpoint.ladder.scales)
        assert [(a.token_ids, a.matches) for a in row] == [each[:2] for each in plain]
        assert [a.logprob for a in row] == pytest.approx([each[2] for each in plain], abs=1e-3)
    return found


def test_the_packaged_model_answers_as_a_plain_reference_does() -> None:
    """In float32, so that rounding decides nothing."""
    checkpoint = open_checkpoint("m3-tiny", dtype="float32", device="cpu")
    inquiries = []
    for drawn, count in ((draw("label", 1), 2), (draw("label", 3), 1)):
        file = io.BytesIO()
        drawn.image.save(file, "PNG")
        questions = [question.text for question in drawn.questions[:count]]
        inquiries.append((image_input(file.getvalue()), questions))
    assert_as_plain(checkpoint, inquiries, batch=2, max_tokens=3)


def test_answers_that_differ_from_scale_to_scale(speaking: Checkpoint) -> None:
    """A model of random weights: long answers, of which coarse scales share only a beginning."""
    inquiries = [(picture(4), QUESTIONS), (picture(5, (40, 90)), QUESTIONS[:1])]
    found = assert_as_plain(speaking, inquiries, batch=2, max_tokens=8)
    shared = [
        matches.index(False)
        for row in found
        for matches in (answer.matches for answer in row)
        if False in matches
    ]
    assert len(set(shared)) > 1  # differences at the first token and later


def test_tiles_take_different_room_for_every_shape(tmp_path: Path) -> None:
    write_llava_hf(NEXT, tmp_path)
    write_tokenizer(tmp_path)
    tiled = open_checkpoint(tmp_path, device="cpu")
    shapes = [picture(1, (64, 48)), picture(2, (48, 90)), picture(3, (64, 48))]
    assert_as_plain(tiled, [(image, QUESTIONS[:2]) for image in shapes], batch=4, max_tokens=3)


async def test_answers_are_those_of_the_engine(scorer: Scorer, speaking: Checkpoint) -> None:
    answers = succeeded(scorer.answers([(IMAGE, QUESTIONS)], max_tokens=6))
    engine = TorchEngine(speaking, FeatureCache(1 << 24), EngineSettings())
    try:
        for question, row in zip(QUESTIONS, answers, strict=True):
            for scale, answer in zip(SCALES, row, strict=True):
                turns = (Turn("user", (ImageSlot(0), question)),)
                request = GenerationRequest("r", turns, (IMAGE,), (scale,), Sampling(max_tokens=6))
                events = [e async for e in engine.generate(request) if isinstance(e, Delta)]
                assert answer.scale == scale
                assert answer.token_ids == tuple(t for e in events for t in e.token_ids)
    finally:
        engine.close()


def test_the_vision_tower_runs_once_per_picture(
    speaking: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(speaking, batch=2)
    encode, encoded = scorer._runner.encode, []

    def counted(image: ImageInput) -> Tensor:
        encoded.append(image)
        return encode(image)

    monkeypatch.setattr(scorer._runner, "encode", counted)
    images = [picture(4), picture(5)]
    scorer.answers([(image, QUESTIONS) for image in images], max_tokens=2)
    assert encoded == images


def test_one_failure_leaves_the_others_alone(scorer: Scorer) -> None:
    broken = ImageInput(b"\xff\xd8\xff nothing", "0" * 64, 8, 8)
    asked = [(IMAGE, [QUESTIONS[0], "word " * 2000, QUESTIONS[1]]), (broken, QUESTIONS[:2])]
    (first, long, last), failed = scorer.answers(asked, max_tokens=2)
    assert isinstance(long, ContextLengthError)
    assert [type(each) for each in failed] == [InvalidImageError] * 2
    alone = succeeded(scorer.answers([(IMAGE, QUESTIONS[:2])], max_tokens=2))
    for beside, expected in zip(succeeded([[first, last]]), alone, strict=True):
        assert [a.token_ids for a in beside] == [a.token_ids for a in expected]


def test_some_scales_and_no_questions(scorer: Scorer) -> None:
    asked = [(IMAGE, QUESTIONS[:1])]
    ((coarse, fine),) = succeeded(scorer.answers(asked, max_tokens=2, scales=(9, 144)))
    assert (coarse.scale, fine.scale) == (9, 144)
    assert all(fine.matches) and len(coarse.matches) == len(fine.token_ids)
    assert scorer.answers([(IMAGE, [])], max_tokens=2) == [[]]
    with pytest.raises(InvalidScaleError):
        scorer.answers(asked, scales=(100,))


def test_bounds(speaking: Checkpoint, llava15: Checkpoint) -> None:
    (rows,) = Scorer(speaking, context=300).answers([(IMAGE, QUESTIONS)])
    assert all(isinstance(row, ContextLengthError) for row in rows)
    with pytest.raises(CheckpointError, match="tokenizer"):
        Scorer(llava15)
