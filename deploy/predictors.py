"""Which predictor a configuration means, opened and checked against the model. No torch, no Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import predictor
from deploy.config import Config
from m3_backend.messages import ModelInfo
from predictor.predictor import Predictor
from router.reload import PredictorWatch

PACKAGED = Path(predictor.__file__).parent / "artifacts"


def find_artifact(config: Config) -> Path | None:
    """The folder of the predictor to use, or None to do without."""
    if config.predictor == "none":
        return None
    if config.predictor == "auto":
        name = config.model.checkpoint
        packaged = PACKAGED / name
        # A checkpoint given by its path is not one of ours, whatever its folder is called.
        return packaged if Path(name).name == name and packaged.is_dir() else None
    return Path(config.predictor)


def signature(config: Config) -> object:
    """Changes when the artefact does: where it is, and its files' times, sizes and places.

    Raises:
        OSError: it is not there.
    """
    folder = find_artifact(config)
    if folder is None:
        return None
    files = ((file.name, file.stat()) for file in folder.iterdir())
    return folder.resolve(), sorted((n, s.st_mtime_ns, s.st_size, s.st_ino) for n, s in files)


def load_predictor(config: Config) -> Predictor | None:
    """The configured predictor, whatever model it is for.

    Raises:
        ArtifactError: it is missing or broken.
    """
    folder = find_artifact(config)
    return None if folder is None else Predictor.load(folder)


def open_predictor(config: Config, model: ModelInfo) -> Predictor | None:
    """The configured predictor, checked against the model that it will route for.

    Raises:
        ArtifactError: it is missing, broken, or was made for another model.
    """
    loaded = load_predictor(config)
    if loaded is not None:
        loaded.require_model(model)
    return loaded


def watch_predictor(config: Config, model: ModelInfo) -> PredictorWatch | None:
    """The configured predictor and what may follow it, or None to do without.

    Raises:
        ArtifactError: it is missing, broken, or was made for another model.
    """
    if find_artifact(config) is None:
        return None

    def read() -> Predictor:
        opened = open_predictor(config, model)
        assert opened is not None
        return opened

    return PredictorWatch(read, partial(signature, config))
