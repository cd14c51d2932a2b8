"""On a model of random weights: the book-keeping is tested, not whether answers are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.messages import ImageInput
from m3_backend.scoring import ReferenceScore, ScaleAnswer
from predictor.datasets import Row
from predictor.errors import OutcomesError
from predictor.features import image_vector
from predictor.image_table import read_image_table, table_beside
from predictor.label import Labeller, agreement, label
from predictor.records import read_outcomes
from tests.m3_backend.support import LLAVA15, write_llava_hf, write_tokenizer
from tests.predictor.synthetic import READ, draw, encoded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    write_llava_hf(LLAVA15, folder)
    write_tokenizer(folder)
    return open_checkpoint(folder, device="cpu")


def rows(count: int, questions: int = 2) -> list[Row]:
    return [
        Row(
            sample=f"{picture}-{number}",
            image=f"{picture}.png",
            picture=encoded(draw(picture)[0]),
            question=READ[number],
            answers=("abc",),
            group="read",
            split="test",
        )
        for picture in range(count)
        for number in range(questions)
    ]


def test_every_row_is_answered_at_every_scale(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    seen: list[int] = []
    assert label(rows(2), checkpoint, out, max_tokens=2, progress=seen.append) == 4

    table = read_outcomes(out)
    assert table.sample.tolist() == ["0-0", "0-1", "1-0", "1-1"]
    assert table.source.model_identity == checkpoint.identity
    assert table.source.processor == checkpoint.preprocessing.identity
    assert table.image_tokens.tolist() == [[1, 9, 36, 144, 576]] * 4
    assert (table.agrees[:, -1] == 1).all()
    assert set(table.correct.ravel()) <= {0.0, 1.0}
    assert table.ms.min() > 0
    assert seen == [2, 4]

    features = read_image_table(table_beside(out))
    assert features.images == ("0.png", "1.png")
    assert features.values[1].tolist() == image_vector(encoded(draw(1)[0])).tolist()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "outcomes.images.parquet",
        "outcomes.parquet",
    ]


def test_the_vision_tower_runs_once_per_picture(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller = Labeller(checkpoint, max_tokens=1)
    runner = labeller._scorer._runner
    encode, encoded_images = runner.encode, []

    def counted(image: ImageInput) -> Tensor:
        encoded_images.append(image.digest)
        return encode(image)

    monkeypatch.setattr(runner, "encode", counted)
    of_one = rows(1, questions=3)
    outcomes, _ = labeller.outcomes([*of_one, replace(of_one[0], question="word " * 5000)])
    assert sum(not outcome.error for outcome in outcomes) == 15
    assert len(encoded_images) == 1  # although the long question made the batch fail


def test_failed_rows_are_recorded_as_failed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    good, too_long, broken, missing = (*rows(2)[:3], rows(3)[-1])
    too_long = replace(too_long, question="word " * 5000)
    broken = replace(broken, picture=b"\xff\xd8\xff nothing")
    missing = replace(missing, picture=tmp_path / "absent.png")
    out = tmp_path / "outcomes.parquet"

    assert label([good, too_long, broken, missing], checkpoint, out, max_tokens=1) == 4

    table = read_outcomes(out)
    assert table.sample.tolist() == [good.sample]
    assert table.failed == 3
    assert read_image_table(table_beside(out)).images == (good.image,)


def test_an_interrupted_run_goes_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(done: int) -> None:
        if done == 6:
            raise Interrupted

    out = tmp_path / "outcomes.parquet"
    with pytest.raises(Interrupted):
        label(rows(4), checkpoint, out, max_tokens=1, pictures_per_part=2, progress=stop)
    assert not out.exists()

    seen: list[int] = []
    done = label(rows(4), checkpoint, out, max_tokens=1, progress=seen.append)
    assert done == 4  # the two pictures of the part that was finished are not asked about again
    assert seen == [2, 4, 6, 8]
    assert len(read_outcomes(out)) == 8
    assert len(read_image_table(table_beside(out)).images) == 4


def test_another_checkpoint_does_not_continue(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(rows(2), checkpoint, out, max_tokens=1, pictures_per_part=1, progress=stop)
    other = replace(checkpoint, identity="0" * 64)
    with pytest.raises(OutcomesError, match="remove the folder to start over"):
        label(rows(1), other, out, max_tokens=1)


def test_outcomes_are_not_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "outcomes.parquet").touch()
    with pytest.raises(OutcomesError, match="exists"):
        label(rows(1), checkpoint, tmp_path / "outcomes.parquet")
    with pytest.raises(OutcomesError, match="no rows"):
        label([], checkpoint, tmp_path / "new.parquet")


def test_agreement_is_equality_up_to_sixteen_tokens_and_a_share_beyond() -> None:
    def answer(*tokens: int) -> ScaleAnswer:
        return ScaleAnswer(1, "", tokens)

    def score(matches: list[bool]) -> ReferenceScore:
        return ReferenceScore(1, tuple(matches), -1.0)

    short, long = tuple(range(16)), tuple(range(20))
    almost = [True] * 15 + [False]
    assert agreement(answer(*short), answer(*short), score([True] * 16)) == 1.0
    assert agreement(answer(*short[:-1], 99), answer(*short), score(almost)) == 0.0
    assert agreement(answer(7), answer(*long), score([True] * 18 + [False] * 2)) == 0.9
