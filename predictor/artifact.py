"""A trained predictor as a folder: LightGBM's text, plain arrays, JSON. Nothing is unpickled.

manifest.json    what it is; `sha256` covers `content`, which holds the hashes of the other files
model.txt        the trees
arrays.npz       calibration, inverse document frequencies, query directions, and how what it saw
                 was distributed
vocabulary.json  the n-grams, in the order of the arrays' rows

The version is the start of that one hash, so equal versions are equal predictors. The date stands
beside the hashed content: the same data and seed give the same version.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from m3_backend.scales import ScaleLadder
from predictor import features
from predictor.calibration import CONFIDENCE, BetaCalibration, Thresholds
from predictor.drift import BINS, Reference, reference_names
from predictor.errors import ArtifactError
from predictor.query_features import QueryProjection
from predictor.records import OutcomeSource, Target
from predictor.success import SuccessModel

FORMAT = 2
MANIFEST = "manifest.json"
_MODEL = "model.txt"
_ARRAYS = "arrays.npz"
_VOCABULARY = "vocabulary.json"
VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """Everything a predictor is.

    Args:
        source: the checkpoint whose outcomes it learned from, and the only one it may serve.
        target: what "success" means in its probabilities and its promise.
        outcomes: content hash of the training data.
        metrics: figures of its training, by name.
        reference: what traffic is compared with; None in artefacts from before there was one.
    """

    source: OutcomeSource
    target: Target
    projection: QueryProjection
    model: SuccessModel
    calibration: BetaCalibration
    thresholds: Thresholds
    outcomes: str
    metrics: dict[str, float] = field(default_factory=dict)
    reference: Reference | None = None


def save(artifact: Artifact, folder: Path, created: str) -> str:
    """Write an artefact, replacing the one that is there; gives its version.

    The one that is there stays until the new one is complete, and comes back if that cannot take
    its place.

    Args:
        created: when, in ISO 8601; not part of the version.

    Raises:
        ArtifactError: `folder` holds something else.
    """
    require_replaceable(folder)
    files = _encode(artifact)
    content = _content(artifact, files)
    digest = _digest_of(content)
    manifest = {"sha256": digest, "created": created, "content": content}
    files[MANIFEST] = json.dumps(manifest, indent=1, sort_keys=True).encode()

    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as workspace:
        new, old = Path(workspace, "new"), Path(workspace, "old")
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        _exchange(new, folder, old)
    return digest[:VERSION_DIGITS]


def require_replaceable(folder: Path) -> None:
    """Checked before anything is computed for `folder`, and again before anything is removed.

    Raises:
        ArtifactError: it is neither free, nor empty, nor an artefact.
    """
    if not folder.exists() or (folder / MANIFEST).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ArtifactError(
            f"{folder} exists and is not a predictor (it has no {MANIFEST}); "
            "it is left as it is, name a new folder."
        )


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """`new` becomes `folder`, and what was there becomes `old`; all on one file system."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def load(folder: Path) -> tuple[Artifact, str]:
    """Read an artefact and its version.

    Raises:
        ArtifactError: a missing or altered file, another format, features of another version.
    """
    manifest = read_manifest(folder)
    content = manifest["content"]
    try:
        _require_readable(content, folder)
        artifact = _decode(content, _read_files(folder, content["files"]))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{folder} is not a complete predictor; train it again.") from error
    return artifact, manifest["sha256"][:VERSION_DIGITS]


def _require_readable(content: dict[str, Any], folder: Path) -> None:
    if content["format"] != FORMAT:
        raise ArtifactError(
            f"{folder} has artefact format {content['format']!r}, this release reads {FORMAT}; "
            "train it again with this release."
        )
    if content["features"]["version"] != features.VERSION:
        raise ArtifactError(
            f"{folder} was trained on features {content['features']['version']}, this release "
            f"computes {features.VERSION}; train it again with this release."
        )


def _encode(artifact: Artifact) -> dict[str, bytes]:
    arrays = io.BytesIO()
    reference = artifact.reference
    compared: dict[str, Any] = {}
    if reference is not None:
        compared = {"reference_edges": reference.edges, "reference_counts": reference.counts}
    np.savez(  # its zip members carry a fixed date, so equal arrays are equal bytes
        arrays,
        calibration=artifact.calibration.coefficients,
        idf=artifact.projection.idf,
        directions=artifact.projection.directions,
        **compared,
    )
    return {
        _MODEL: artifact.model.to_text().encode(),
        _ARRAYS: arrays.getvalue(),
        _VOCABULARY: json.dumps(artifact.projection.vocabulary, ensure_ascii=False).encode(),
    }


def _content(artifact: Artifact, files: dict[str, bytes]) -> dict[str, Any]:
    source = artifact.source
    return {
        "format": FORMAT,
        "features": {"version": features.VERSION, "names": list(artifact.model.names)},
        "ladder": {"scales": list(source.ladder.scales), "grid_side": source.ladder.grid_side},
        "model": source.model,
        "model_identity": source.model_identity,
        "processor": source.processor,
        "target": artifact.target,
        "outcomes": artifact.outcomes,
        "confidence": CONFIDENCE,
        "thresholds": {
            "bounds": list(artifact.thresholds.bounds),
            "prices": list(artifact.thresholds.prices),
        },
        "metrics": artifact.metrics,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }


def _decode(content: dict[str, Any], files: dict[str, bytes]) -> Artifact:
    ladder = ScaleLadder(tuple(content["ladder"]["scales"]), content["ladder"]["grid_side"])
    with np.load(io.BytesIO(files[_ARRAYS]), allow_pickle=False) as arrays:
        calibration = BetaCalibration(arrays["calibration"])
        vocabulary = tuple(json.loads(files[_VOCABULARY]))
        projection = QueryProjection(vocabulary, arrays["idf"], arrays["directions"])
        compared = {
            name: arrays[f"reference_{name}"]
            for name in ("edges", "counts")
            if f"reference_{name}" in arrays
        }
    names = tuple(content["features"]["names"])
    if names != features.feature_names(projection.size):
        raise ValueError("feature names differ from those that are computed")
    if calibration.coefficients.shape != (len(ladder), 3):
        raise ValueError("calibration does not match the ladder")
    if content["target"] not in get_args(Target):
        raise ValueError("unknown target")
    return Artifact(
        source=OutcomeSource(
            content["model"], content["model_identity"], content["processor"], ladder
        ),
        target=content["target"],
        projection=projection,
        model=SuccessModel.from_text(files[_MODEL].decode(), names, ladder),
        calibration=calibration,
        thresholds=Thresholds(
            tuple(content["thresholds"]["bounds"]), tuple(content["thresholds"]["prices"])
        ),
        outcomes=content["outcomes"],
        metrics=content["metrics"],
        reference=_reference(reference_names(names, ladder.scales), compared),
    )


def _reference(names: tuple[str, ...], arrays: dict[str, Any]) -> Reference | None:
    if not arrays:
        return None
    edges, counts = arrays["edges"], arrays["counts"]
    if edges.shape != (len(names), BINS - 1) or counts.shape != (len(names), BINS):
        raise ValueError("the reference does not match the features")
    return Reference(names, edges, counts)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an artefact says of itself; its other files are not looked at.

    Raises:
        ArtifactError: missing, altered, or no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"There is no predictor at {folder} ({MANIFEST} cannot be read); "
            "give the folder that `train-predictor` wrote."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON; copy the folder again.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("content"), dict):
        raise ArtifactError(f"{path} is not a predictor's manifest.")
    if manifest.get("sha256") != _digest_of(manifest["content"]):
        raise ArtifactError(f"{path} was altered after training (its hash differs); restore it.")
    return manifest


def _read_files(folder: Path, hashes: dict[str, str]) -> dict[str, bytes]:
    files = {}
    for name in (_MODEL, _ARRAYS, _VOCABULARY):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{folder} lacks {name}; copy the whole folder again.") from error
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise ArtifactError(f"{folder / name} was altered after training (its hash differs).")
        files[name] = data
    return files


def _digest_of(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
