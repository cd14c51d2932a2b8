"""The reference checkpoints, opened once."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from tests.m3_backend.support import LLAVA15, NEXT, write_llava_hf, write_tokenizer


@pytest.fixture(scope="session")
def llava15() -> Checkpoint:
    return open_checkpoint(LLAVA15, device="cpu")


@pytest.fixture(scope="session")
def llava_next() -> Checkpoint:
    return open_checkpoint(NEXT, device="cpu")


@pytest.fixture(scope="session")
def speaking_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLaVA-1.5 reference in llava-hf's layout, with a tokenizer of its vocabulary."""
    folder = tmp_path_factory.mktemp("speaking")
    write_llava_hf(LLAVA15, folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def speaking(speaking_folder: Path) -> Checkpoint:
    return open_checkpoint(speaking_folder, device="cpu")
