"""Shapes from configs, in the layouts that people have, without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m3_backend.checkpoint import open_checkpoint
from m3_backend.costs import ModelShape
from m3_backend.errors import CheckpointError
from m3_backend.shapes import KNOWN_SHAPES, find_shape, shape_from_config


def test_the_shape_is_that_of_the_opened_checkpoint() -> None:
    assert find_shape("m3-tiny") == open_checkpoint("m3-tiny").shape


def test_a_llava_hf_config_is_silent_about_what_is_vicunas() -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    shape = shape_from_config(config)
    assert shape.vocabulary == 32064
    assert (shape.layers, shape.hidden, shape.head_dim) == (32, 4096, 128)


def test_the_original_layout_and_grouped_heads() -> None:
    config = {
        "model_type": "llava_llama",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    assert shape_from_config(config) == ModelShape(40, 5120, 13824, 40, 8, 128, 32000)
    del config["num_key_value_heads"]
    assert shape_from_config(config) == KNOWN_SHAPES["llava-1.5-13b"]


def test_another_language_model_must_spell_its_sizes_out() -> None:
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        shape_from_config({"text_config": {"model_type": "mistral", "vocab_size": 32064}})


def test_a_folder_is_read_without_weights(tmp_path: Path) -> None:
    config = {"text_config": {"num_hidden_layers": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape(str(tmp_path)).layers == 2


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_config_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_shape(str(tmp_path))


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CheckpointError, match=r"llava-1\.5-7b"):
        find_shape("nobody/nothing")
