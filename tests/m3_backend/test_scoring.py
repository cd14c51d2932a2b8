"""Labels in bulk agree with the engine and with each other."""

from __future__ import annotations

import pytest
from torch import Tensor

from m3_backend.checkpoint import Checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.errors import CheckpointError, ContextLengthError, InvalidScaleError
from m3_backend.feature_cache import FeatureCache
from m3_backend.messages import Delta, GenerationRequest, ImageInput, ImageSlot, Sampling, Turn
from m3_backend.scoring import Scorer
from tests.m3_backend.support import picture

SCALES = (1, 9, 36, 144, 576)
QUESTIONS = ["What is in the picture?", "how many", "number 7 and 7919 and what is in it?"]
IMAGE = picture(4)


@pytest.fixture(scope="module")
def scorer(speaking: Checkpoint) -> Scorer:
    return Scorer(speaking, batch=4)


async def test_answers_are_those_of_the_engine(scorer: Scorer, speaking: Checkpoint) -> None:
    answers = scorer.answers(IMAGE, QUESTIONS, max_tokens=6)
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


def test_teacher_forcing_agrees_with_generation(scorer: Scorer) -> None:
    """At each scale: all positions match exactly if the greedy answer is the reference."""
    answers = scorer.answers(IMAGE, QUESTIONS, max_tokens=6)
    finest = [row[-1].token_ids for row in answers]
    scores = scorer.score(IMAGE, list(zip(QUESTIONS, finest, strict=True)))
    agreeing = 0
    for row, reference, scored in zip(answers, finest, scores, strict=True):
        for answer, score in zip(row, scored, strict=True):
            assert score.scale == answer.scale
            assert all(score.matches) == (answer.token_ids == reference)
            common = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(answer.token_ids, reference, strict=True))
                    if a != b
                ),
                len(reference),
            )
            assert all(score.matches[:common]) and score.logprob < 0
            agreeing += all(score.matches)
    assert len(QUESTIONS) <= agreeing < len(QUESTIONS) * len(SCALES)


def test_a_likelier_reference_scores_higher(scorer: Scorer) -> None:
    ((*_, finest),) = scorer.answers(IMAGE, QUESTIONS[:1], max_tokens=3)
    worse = (*finest.token_ids[:-1], (finest.token_ids[-1] + 1) % 400)
    pairs = [(QUESTIONS[0], finest.token_ids), (QUESTIONS[0], worse)]
    good, bad = scorer.score(IMAGE, pairs)
    assert good[-1].logprob > bad[-1].logprob
    assert bad[-1].matches == (True, True, False)


def test_the_vision_tower_runs_once_per_picture(
    speaking: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that labelling asks about one picture; and another picture is another picture."""
    scorer = Scorer(speaking, scales=(1,))
    encode, encoded = scorer._runner.encode, []

    def counted(image: ImageInput) -> Tensor:
        encoded.append(image)
        return encode(image)

    monkeypatch.setattr(scorer._runner, "encode", counted)
    images = [picture(4), picture(5)]
    answers = []
    for image in images:
        rows = scorer.answers(image, QUESTIONS, max_tokens=2)
        scorer.score(image, [(q, row[0].token_ids) for q, row in zip(QUESTIONS, rows, strict=True)])
        answers.append(scorer.answers(image, QUESTIONS[:1], max_tokens=2)[0])
    assert encoded == images
    fresh = Scorer(speaking, scales=(1,)).answers(images[1], QUESTIONS[:1], max_tokens=2)[0]
    assert answers[1] == fresh


def test_some_scales_and_no_questions(speaking: Checkpoint) -> None:
    scorer = Scorer(speaking, scales=(9, 144))
    ((coarse, fine),) = scorer.answers(IMAGE, QUESTIONS[:1], max_tokens=2)
    assert (coarse.scale, fine.scale) == (9, 144)
    assert scorer.answers(IMAGE, [], max_tokens=2) == []
    with pytest.raises(InvalidScaleError):
        Scorer(speaking, scales=(100,))


def test_bounds(speaking: Checkpoint, llava15: Checkpoint) -> None:
    with pytest.raises(ContextLengthError):
        Scorer(speaking, context=300).answers(IMAGE, QUESTIONS)
    with pytest.raises(CheckpointError, match="tokenizer"):
        Scorer(llava15)
