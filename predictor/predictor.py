"""The trained predictor as the service uses it: an image and a question in, probabilities out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from m3_backend.messages import ImageInput, ModelInfo
from m3_backend.scales import ScaleLadder
from predictor import artifact as artifacts
from predictor.artifact import Artifact
from predictor.drift import Reference
from predictor.errors import ArtifactError
from predictor.features import FeatureVector, extract, image_vector
from predictor.records import Target

_CACHED_IMAGES = 4096  # about a kilobyte each, keys included


@dataclass(frozen=True)
class Prediction:
    """What is expected of one image and question.

    Args:
        p_success: calibrated probability of success per scale, coarse to fine.
        features: what it was predicted from, as drift is told by; None if the predictor keeps
            none.
        features_s: seconds that the features took; the rest of the call was the prediction.
        image: everything measured of the picture, as `features.image_names`, for the record.
    """

    p_success: tuple[float, ...]
    features: FeatureVector | None
    features_s: float = 0.0
    image: NDArray[np.float32] | None = None


class Predictor:
    """Predicts success per scale. Safe to call from many threads.

    Image features are remembered by (digest, salt), so that a repeated image costs only the
    question; a caller under another salt cannot tell from the time whether an image was seen.
    """

    def __init__(self, artifact: Artifact, version: str) -> None:
        self._artifact = artifact
        self._version = version
        self._images = _ImageVectors(_CACHED_IMAGES)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Open the artefact in a folder.

        Raises:
            ArtifactError: missing, altered, or of another format or feature version.
        """
        return cls(*artifacts.load(folder))

    @property
    def version(self) -> str:
        """The start of the artefact's content hash."""
        return self._version

    @property
    def ladder(self) -> ScaleLadder:
        return self._artifact.source.ladder

    @property
    def model_identity(self) -> str:
        """Of the checkpoint it was trained for."""
        return self._artifact.source.model_identity

    @property
    def target(self) -> Target:
        return self._artifact.target

    @property
    def reference(self) -> Reference | None:
        """What traffic is compared with; None if it was trained before there was one."""
        return self._artifact.reference

    def require_model(self, info: ModelInfo) -> None:
        """Make sure this predictor was trained for that model.

        Raises:
            ArtifactError: another checkpoint, another preprocessing or another ladder.
        """
        source = self._artifact.source
        trained = (source.model_identity, source.processor, source.ladder)
        if trained != (info.identity, info.processor, info.ladder):
            raise ArtifactError(
                f"The predictor {self.version} was trained for {source.model} "
                f"({source.model_identity[:12]}, scales {source.ladder.scales}), the model served "
                f"is {info.name} ({info.identity[:12]}, scales {info.ladder.scales}). "
                "Train one for this model, or serve it with `predictor: none`."
            )

    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        """Calibrated probability of success at every scale of `ladder`.

        Raises:
            InvalidImageError: bytes that do not decode.
        """
        began_s = perf_counter()
        vector = self._images.get(image, salt)
        features = extract(vector, question, self._artifact.projection)
        features_s = perf_counter() - began_s
        return Prediction(self._p_success(features), features, features_s, vector)

    def expect(self, image: NDArray[np.float32], question: str) -> tuple[float, ...]:
        """What `predict` gives as `p_success`, of a picture whose `image_vector` is known."""
        return self._p_success(extract(image, question, self._artifact.projection))

    def _p_success(self, features: FeatureVector) -> tuple[float, ...]:
        raw = self._artifact.model.predict(features.values[None])
        return tuple(self._artifact.calibration.apply(raw)[0].tolist())

    @property
    def regret_bounds(self) -> tuple[float, ...]:
        """The regret bounds that a price is certified for, ascending."""
        thresholds = self._artifact.thresholds
        pairs = zip(thresholds.bounds, thresholds.prices, strict=True)
        return tuple(bound for bound, price in pairs if price is not None)

    def threshold(self, max_regret: float) -> float | None:
        """The certified price for a regret bound; None where only the finest scale qualifies."""
        return self._artifact.thresholds.at(max_regret)


class _ImageVectors:
    """The least recently used image features are forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def get(self, image: ImageInput, salt: str) -> NDArray[np.float32]:
        key = image.digest, salt
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                return self._vectors[key]
        vector = image_vector(image.data)
        with self._lock:
            self._vectors[key] = vector
            if len(self._vectors) > self._capacity:
                self._vectors.popitem(last=False)
        return vector
