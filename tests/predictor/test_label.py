"""On a model of random weights: the book-keeping is tested, not whether answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m3_backend.errors import InvalidScaleError
from m3_backend.scoring import ScaleAnswer
from predictor import label as module
from predictor.datasets import Row
from predictor.errors import OutcomesError
from predictor.features import image_vector
from predictor.image_table import read_image_table, table_beside
from predictor.label import Labelled, NullPlan, label
from predictor.labeller import Labeller, Setup, agreement
from predictor.null_table import null_table_beside, read_null_table
from predictor.records import read_outcomes
from tests.m3_backend.support import LLAVA15, write_llava_hf, write_tokenizer
from tests.predictor.synthetic import READ, draw, encoded


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("model")
    write_llava_hf(LLAVA15, folder)
    write_tokenizer(folder)
    return Setup(str(folder), device="cpu", max_tokens=2)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PICTURES_PER_PART", 2)


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


def columns(path: Path, *left_out: str) -> list[dict[str, object]]:
    return pq.read_table(path).drop_columns(list(left_out)).to_pylist()


def test_every_row_is_answered_at_every_scale(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    seen: list[tuple[int, int | None]] = []
    asked = rows(2)
    asked[1] = replace(asked[1], answers=())
    asked[2] = replace(asked[2], metric="anls")
    done = label(asked, setup, out, progress=lambda *each: seen.append(each))
    assert done == Labelled(4, {})
    assert seen == [(4, 4)]

    table = read_outcomes(out)
    labeller = Labeller(setup)
    assert table.source == labeller.source
    assert table.sample.tolist() == ["0-0", "0-1", "1-0", "1-1"]
    assert table.image_tokens.tolist() == [[1, 9, 36, 144, 576]] * 4
    assert (table.agrees[:, -1] == 1).all()
    assert set(table.correct[0]) <= {0.0, 1.0}
    assert (table.correct[1] != table.correct[1]).all()  # without answers nothing is right or wrong
    assert table.ms.min() > 0
    assert {(row["sample"], row["metric"]) for row in columns(out)} == {
        ("0-0", "exact"),
        ("0-1", ""),
        ("1-0", "anls"),
        ("1-1", "exact"),
    }

    features = read_image_table(table_beside(out))
    assert features.images == ("0.png", "1.png")
    assert features.values[1].tolist() == image_vector(encoded(draw(1)[0])).tolist()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "outcomes.images.parquet",
        "outcomes.parquet",
    ]


def test_failed_rows_are_recorded_as_failed(setup: Setup, tmp_path: Path) -> None:
    good, too_long, broken, missing = (*rows(2)[:3], rows(3)[-1])
    too_long = replace(too_long, question="word " * 5000)
    broken = replace(broken, picture=b"\xff\xd8\xff nothing")
    missing = replace(missing, picture=tmp_path / "absent.png")
    out = tmp_path / "outcomes.parquet"
    null = NullPlan(9, runs=2)

    done = label([good, too_long, broken, missing], setup, out, null=null)

    assert done.answered == 4 + 4 * 2
    assert set(done.failed) == {too_long.sample, broken.sample, missing.sample}
    assert "prompt tokens" in done.failed[too_long.sample]
    assert done.failed[missing.sample] == "The file cannot be read."
    table = read_outcomes(out)
    assert table.sample.tolist() == [good.sample]
    assert table.failed == 3
    assert read_image_table(table_beside(out)).images == (good.image,)
    noise = read_null_table(null_table_beside(out))
    assert (noise.sample.tolist(), noise.incomplete) == ([good.sample], 3)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_run_goes_on(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    interrupt(rows(4), setup, out)
    seen: list[tuple[int, int | None]] = []
    done = label(rows(4), setup, out, progress=lambda *each: seen.append(each))
    assert done.answered == 4  # the part that was finished is not asked about again
    assert seen == [(4, 8), (8, 8)]

    other = tmp_path / "at once.parquet"
    label(rows(4), setup, other)
    assert columns(out, "ms") == columns(other, "ms")
    assert len(read_image_table(table_beside(out)).images) == 4


@pytest.mark.usefixtures("small_parts")
def test_what_was_done_in_another_way_is_not_taken_over(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    interrupt(rows(4), setup, out)
    assert label(rows(4), replace(setup, max_tokens=1), out).answered == 8
    interrupt(rows(4), setup, tmp_path / "second.parquet")
    changed = rows(4)
    changed[0] = replace(changed[0], question="How many?")
    assert label(changed, setup, tmp_path / "second.parquet").answered == 8


@pytest.mark.usefixtures("small_parts")
def test_a_picture_that_was_mended_is_asked_about_again(setup: Setup, tmp_path: Path) -> None:
    picture = tmp_path / "0.png"
    asked = [replace(row, picture=picture) for row in rows(1)] + rows(3)[2:]
    out = tmp_path / "outcomes.parquet"
    interrupt(asked, setup, out)
    picture.write_bytes(rows(1)[0].read_picture())
    done = label(asked, setup, out)
    assert (done.answered, done.failed) == (6, {})


def interrupt(asked: Sequence[Row], setup: Setup, out: Path) -> None:
    """Stops after the first part."""

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(asked, setup, out, progress=stop)
    assert not out.exists()


@pytest.mark.usefixtures("small_parts")
def test_two_processes_give_what_one_gives(setup: Setup, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    null = NullPlan(36, runs=3, share=0.6)
    label(rows(6), setup, alone, null=null)
    done = label(rows(6), setup, together, null=null, jobs=2)
    assert columns(together, "ms") == columns(alone, "ms")
    assert columns(null_table_beside(together)) == columns(null_table_beside(alone))
    features = [read_image_table(table_beside(path)) for path in (alone, together)]
    assert features[0].images == features[1].images
    assert (features[0].values == features[1].values).all()
    assert done.answered == 12 + 3 * sum(null.takes(row.image) for row in rows(6))


def test_the_noise_null_asks_the_same_of_shifted_pictures(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    label(rows(3), setup, out, null=NullPlan(144, runs=4))
    null = pq.read_table(null_table_beside(out)).to_pylist()
    assert len(null) == 6 * 4
    answers = {row["sample"]: row["answer"] for row in columns(out) if row["scale"] == 144}
    assert {row["sample"]: row["answer"] for row in null if row["run"] == 0} == answers
    table = read_null_table(null_table_beside(out))
    assert table.scale == 144
    assert table.correct.shape == (6, 4)
    assert set(table.image) == {"0.png", "1.png", "2.png"}


def test_a_noise_null_can_be_added_and_be_of_a_share(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    label(rows(5), setup, out)
    outcomes = out.read_bytes()
    null = NullPlan(1, runs=2, share=0.5)
    taken = {row.image for row in rows(5) if null.takes(row.image)}
    assert 0 < len(taken) < 5
    label(rows(5), setup, out, null=null)
    assert set(read_null_table(null_table_beside(out)).image) == taken
    assert out.read_bytes() == outcomes
    with pytest.raises(OutcomesError, match="exists"):
        label(rows(5), setup, out, null=null)


def test_a_share_may_take_no_picture(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    label(rows(1), setup, out, null=NullPlan(1, runs=2, share=1e-9))
    assert len(read_null_table(null_table_beside(out))) == 0


def test_wrong_use_is_refused(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.parquet"
    with pytest.raises(OutcomesError, match="no rows"):
        label([], setup, out)
    with pytest.raises(InvalidScaleError):
        label(rows(1), setup, out, null=NullPlan(100))
    with pytest.raises(OutcomesError, match="2 to 25 runs"):
        NullPlan(1, runs=26)
    with pytest.raises(OutcomesError, match="share"):
        NullPlan(1, share=0.0)
    null_table_beside(out).write_bytes(b"of outcomes that are gone")
    with pytest.raises(OutcomesError, match="exists; remove it"):
        label(rows(1), setup, out, null=NullPlan(1))
    null_table_beside(out).unlink()
    label(rows(1), setup, out)
    with pytest.raises(OutcomesError, match="exists"):
        label(rows(1), setup, out)
    edited = pq.read_table(out)
    metadata = edited.schema.metadata | {b"m3.model_identity": b"0" * 64}
    pq.write_table(edited.replace_schema_metadata(metadata), out)
    with pytest.raises(OutcomesError, match="another checkpoint"):
        label(rows(1), setup, out, null=NullPlan(1))


def test_agreement_is_equality_up_to_sixteen_tokens_and_a_share_beyond() -> None:
    def answer(tokens: Sequence[int], matches: Sequence[bool] = ()) -> ScaleAnswer:
        return ScaleAnswer(1, "", tuple(tokens), tuple(matches), -1.0)

    short, long = range(16), range(20)
    assert agreement(answer(short), answer(short)) == 1.0
    almost = answer([*short[:-1], 99], [True] * 15 + [False])
    assert agreement(almost, answer(short)) == 0.0
    differs = answer([7], [True] * 18 + [False] * 2)
    assert agreement(differs, answer(long)) == 0.9
