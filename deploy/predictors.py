"""Which predictor a configuration means, opened and checked against the model. No torch, no Ray.

`auto` is what serves in this user's own registry, else what ships with the checkpoint. A named
folder is an artefact or a registry; in a registry nothing may serve yet.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import predictor
from deploy.config import Config, state_folder
from m3_backend.errors import ServiceError
from m3_backend.messages import ModelInfo
from predictor.errors import ArtifactError, RegistryError
from predictor.predictor import Predictor
from predictor.registry import Registry, is_registry
from router.reload import PredictorWatch

logger = logging.getLogger("m3_router.predictor")

PACKAGED = Path(predictor.__file__).parent / "artifacts"


def registry_of(config: Config) -> Registry | None:
    """Where predictors of this configuration are published; None if it names none."""
    if config.predictor == "auto":
        return Registry(state_folder() / "predictors") if config.ray.address == "local" else None
    folder = Path(config.predictor)
    return Registry(folder) if config.predictor != "none" and is_registry(folder) else None


def find_artifact(config: Config, model: ModelInfo | None = None) -> Path | None:
    """The folder of the predictor to use, or None to do without.

    Args:
        model: without it, registries are not looked into.
    """
    if config.predictor == "none":
        return None
    registry = registry_of(config)
    if registry is not None and model is not None:
        link = registry.link(model.identity)
        if link.is_symlink():
            return link
    if config.predictor == "auto":
        name = config.model.checkpoint
        packaged = PACKAGED / name
        # A checkpoint given by its path is not one of ours, whatever its folder is called.
        return packaged if Path(name).name == name and packaged.is_dir() else None
    return None if registry is not None else Path(config.predictor)


def signature(config: Config, model: ModelInfo) -> object:
    """Changes when the artefact does: where it is, and its files' times, sizes and places.

    Raises:
        OSError: it is not there.
    """
    return _signature(find_artifact(config, model))


def _signature(folder: Path | None) -> object:
    if folder is None:
        return None
    files = ((file.name, file.stat()) for file in folder.iterdir())
    return folder.resolve(), sorted((n, s.st_mtime_ns, s.st_size, s.st_ino) for n, s in files)


def check_predictor(config: Config) -> None:
    """What can be told before the model is known.

    Raises:
        ArtifactError: a predictor is missing or broken.
    """
    folder = find_artifact(config)
    if folder is not None:
        Predictor.load(folder)


def open_predictor(config: Config, model: ModelInfo) -> Predictor | None:
    """The configured predictor, checked against the model that it will route for.

    Raises:
        ArtifactError: it is missing, broken, or was made for another model.
    """
    return _opened(find_artifact(config, model), model)


def _opened(folder: Path | None, model: ModelInfo) -> Predictor | None:
    if folder is None:
        return None
    # A link is followed once: it may be switched while the files are read.
    loaded = Predictor.load(folder.resolve())
    loaded.require_model(model)
    return loaded


def watch_predictor(config: Config, model: ModelInfo) -> PredictorWatch[Predictor] | None:
    """The configured predictor and what may follow it, or None to do without for good.

    Raises:
        ArtifactError: it is missing, broken, or was made for another model. Of `auto`, only what
            ships is fatal: a release that cannot use what this user has trained starts without.
    """
    registry = registry_of(config)
    if find_artifact(config, model) is None and registry is None:
        return None
    read, seen = partial(open_predictor, config, model), partial(signature, config, model)
    if config.predictor != "auto":
        return PredictorWatch(read, seen)
    try:
        return PredictorWatch(read, seen)
    except ArtifactError as error:
        if registry is None or not registry.link(model.identity).is_symlink():
            raise
        logger.error("the predictor in %s cannot be used: %s", registry.root, error)
        shipped = find_artifact(config)
        instead = None if shipped is None else Predictor.load(shipped)
        if instead is not None:
            instead.require_model(model)
        return PredictorWatch(read, seen, instead=lambda: instead)


def find_named(name: str, registry: Registry | None) -> Path:
    """The folder of an artefact, by its path or as a version of a registry.

    Raises:
        RegistryError: it is neither, or more than one version begins so.
    """
    if registry is None or Path(name).is_dir():
        return Path(name)
    return registry.find(name).folder


def watch_observed(config: Config, model: ModelInfo) -> PredictorWatch[Predictor] | None:
    """The predictor that is to watch beside the one that serves; None to do without for good.

    One that cannot be used is told in the log, and stops nothing.
    """
    if config.observe == "none" or config.records_store is None:
        return None
    registry = registry_of(config)
    if config.observe == "auto" and registry is None:
        return None

    def folder() -> Path | None:
        if config.observe != "auto":
            return find_named(config.observe, registry)
        assert registry is not None
        link = registry.observed_link(model.identity)
        return link if link.is_symlink() else None

    def seen() -> object:
        try:
            return _signature(folder())
        except RegistryError:  # it may come yet
            return None

    def read() -> Predictor | None:
        return _opened(folder(), model)

    try:
        return PredictorWatch(read, seen)
    except ServiceError as error:
        logger.error("the predictor that is to watch cannot be used: %s", error)
        return PredictorWatch(read, seen, instead=lambda: None)
