from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3_backend.messages import digest_of
from predictor import artifact as artifacts
from predictor import features
from predictor.artifact import Artifact
from predictor.errors import ArtifactError
from predictor.image_table import ImageTable
from predictor.records import OutcomeTable
from predictor.train import design_matrix, fit

FILES = ("manifest.json", "model.txt", "arrays.npz", "vocabulary.json")
DAY = "2026-01-01T00:00:00+00:00"


def edit_manifest(folder: Path, **content: object) -> None:
    """Change the content and make its hash right again, as another release would write it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"] |= content
    manifest["sha256"] = artifacts._digest_of(manifest["content"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_saved_predicts_the_same(
    artifact: Artifact, outcomes: OutcomeTable, images: ImageTable, tmp_path: Path
) -> None:
    version = artifacts.save(artifact, tmp_path / "p", DAY)
    loaded, found = artifacts.load(tmp_path / "p")

    assert found == version
    assert (loaded.source, loaded.target, loaded.metrics) == (
        *(artifact.source, artifact.target),
        artifact.metrics,
    )
    assert loaded.thresholds == artifact.thresholds
    assert loaded.reference is not None
    assert artifact.reference is not None
    assert loaded.reference.names == artifact.reference.names
    for name in ("edges", "counts"):
        assert np.array_equal(getattr(loaded.reference, name), getattr(artifact.reference, name))
    few = outcomes.take(np.arange(50))
    p = [
        each.calibration.apply(each.model.predict(design_matrix(few, images, each.projection)))
        for each in (artifact, loaded)
    ]
    assert p[0].tolist() == p[1].tolist()


def test_one_from_before_there_was_a_reference_still_serves(
    artifact: Artifact, tmp_path: Path
) -> None:
    artifacts.save(replace(artifact, reference=None), tmp_path / "p", DAY)
    assert artifacts.load(tmp_path / "p")[0].reference is None


def test_same_data_and_seed_same_bytes_whatever_the_day(
    outcomes: OutcomeTable, images: ImageTable, tmp_path: Path
) -> None:
    few = outcomes.take(np.isin(outcomes.image, np.unique(outcomes.image)[:200]))
    versions = [
        artifacts.save(fit(few, images, target="agreement", seed=seed), tmp_path / name, day)
        for name, seed, day in (("a", 1, DAY), ("b", 1, "2027-05-05T00:00:00+00:00"), ("c", 2, DAY))
    ]
    assert versions[0] == versions[1] != versions[2]
    for name in FILES[1:]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_replaces_what_was_there(artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "p", DAY)
    (tmp_path / "p" / "stale").touch()
    artifacts.save(artifact, tmp_path / "p", DAY)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_what_is_no_artefact_is_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    folder, file, empty = (tmp_path / name for name in ("folder", "file", "empty"))
    (folder / "photos").mkdir(parents=True)
    file.touch()
    empty.mkdir()
    for path in (folder, file):
        with pytest.raises(ArtifactError, match="not a predictor"):
            artifacts.save(artifact, path, DAY)
    artifacts.save(artifact, empty, DAY)
    assert artifacts.load(empty)
    assert (folder / "photos").is_dir() and file.is_file()
    assert sorted(tmp_path.iterdir()) == [empty, file, folder]


def test_the_old_artefact_outlives_a_failure_at_any_step(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming is the last resort of what can fail: each in turn does."""
    version = artifacts.save(artifact, tmp_path / "p", DAY)
    rename, calls = Path.rename, 0

    def failing(which: int) -> Callable[[Path, Path], Path]:
        def instead(source: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls == which:
                raise OSError("no space left")
            return rename(source, target)

        return instead

    for which in (1, 2):
        calls = 0
        monkeypatch.setattr(Path, "rename", failing(which))
        with pytest.raises(OSError, match="no space"):
            artifacts.save(artifact, tmp_path / "p", "2027-01-01T00:00:00+00:00")
        assert artifacts.load(tmp_path / "p")[1] == version
        assert json.loads((tmp_path / "p" / "manifest.json").read_text())["created"] == DAY
        assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(artifact: Artifact, tmp_path: Path, name: str) -> None:
    artifacts.save(artifact, tmp_path / "p", DAY)
    (tmp_path / "p" / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        artifacts.load(tmp_path / "p")


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_refused(artifact: Artifact, tmp_path: Path, name: str) -> None:
    artifacts.save(artifact, tmp_path / "p", DAY)
    data = bytearray((tmp_path / "p" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p" / name).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=name):
        artifacts.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"features": {"version": "image-0", "names": []}}, "features image-0"),
        (
            {"features": {"version": features.VERSION, "names": ["a"]}},
            "not a complete predictor",
        ),
        ({"ladder": {"scales": [1, 100], "grid_side": 24}}, "not a complete predictor"),
        ({"ladder": {"scales": [1, 576], "grid_side": 24}}, "not a complete predictor"),
        ({"target": "luck"}, "not a complete predictor"),
        ({"thresholds": None}, "not a complete predictor"),
    ],
)
def test_another_releases_artefact_is_refused(
    artifact: Artifact, tmp_path: Path, content: dict[str, object], message: str
) -> None:
    artifacts.save(artifact, tmp_path / "p", DAY)
    edit_manifest(tmp_path / "p", **content)
    with pytest.raises(ArtifactError, match=message) as caught:
        artifacts.load(tmp_path / "p")
    assert caught.value.code == "invalid_artifact"


def test_no_array_may_hold_python_objects(artifact: Artifact, tmp_path: Path) -> None:
    artifacts.save(artifact, tmp_path / "p", DAY)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "p" / "arrays.npz", calibration=objects, idf=objects, directions=objects)
    content = json.loads((tmp_path / "p" / "manifest.json").read_text())["content"]
    hashes = content["files"] | {
        "arrays.npz": digest_of((tmp_path / "p" / "arrays.npz").read_bytes())
    }
    edit_manifest(tmp_path / "p", files=hashes)
    with pytest.raises(ArtifactError, match="not a complete predictor"):
        artifacts.load(tmp_path / "p")
