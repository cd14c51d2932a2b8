"""Every layout opens, gives the reference's numbers, and says precisely what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.errors import CheckpointError
from m3_backend.messages import digest_of
from m3_backend.prompt import VICUNA_SYSTEM
from m3_backend.scales import image_tokens
from m3_backend.verify import verify
from m3_backend.weights import identity_of, weight_files
from tests.m3_backend.support import (
    LLAVA15,
    NEXT,
    edit_json,
    edit_weights,
    write_llava_hf,
)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A copy of the LLaVA-1.5 reference to spoil."""
    return Path(shutil.copytree(LLAVA15, tmp_path / "original"))


@pytest.mark.parametrize("source", [LLAVA15, NEXT], ids=lambda folder: folder.name)
@pytest.mark.parametrize("published_names", [True, False])
def test_llava_hf_layouts_agree_with_the_reference(
    source: Path, published_names: bool, tmp_path: Path
) -> None:
    write_llava_hf(source, tmp_path / "hf", published_names=published_names)
    assert verify(tmp_path / "hf").passed


def test_names_as_transformers_writes_them_load(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
    )
    model = Llava(LlavaConfig(vision_config=vision, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    shutil.copyfile(
        LLAVA15 / "vision_tower" / "preprocessor_config.json", tmp_path / "preprocessor_config.json"
    )
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    pixels = torch.randn(1, 3, 336, 336, generator=torch.manual_seed(0))
    with torch.no_grad():
        (features,) = model.model.get_image_features(pixels, return_dict=True).pooler_output
    assert torch.allclose(checkpoint.model.encode(pixels)[0], features, atol=1e-6)
    assert checkpoint.preprocessing.fit == "crop"  # no do_pad: as published llava-hf processors


def test_shards_and_bin_files_hold_the_same_model(original: Path) -> None:
    weights = load_file(original / "model.safetensors")
    names = sorted(weights)
    shards = {"a": names[::2], "b": names[1::2]}
    identities = set()
    (original / "model.safetensors").unlink()

    index = {name: f"{shard}.safetensors" for shard in shards for name in shards[shard]}
    (original / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for shard, own in shards.items():
        save_file({name: weights[name] for name in own}, original / f"{shard}.safetensors")
    assert verify(original).passed
    identities.add(open_checkpoint(original, device="cpu").identity)

    for file in weight_files(original):
        file.unlink()
    (original / "model.safetensors.index.json").unlink()
    index = {name: f"{shard}.bin" for shard in shards for name in shards[shard]}
    (original / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for shard, own in shards.items():
        torch.save({name: weights[name] for name in own}, original / f"{shard}.bin")
    assert verify(original).passed
    identities.add(open_checkpoint(original, device="cpu").identity)
    assert len(identities) == 2  # the identity names files, not values: a miss, never a mix-up


def test_the_checkpoints_own_vision_weights_win(original: Path) -> None:
    own = load_file(original / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    tower = {n.removeprefix(prefix): w for n, w in own.items() if n.startswith(prefix)}
    decoys = {name: torch.zeros_like(weight) for name, weight in tower.items()}
    save_file(decoys, original / "vision_tower" / "model.safetensors")
    assert verify(original).passed

    others = {name: weight for name, weight in own.items() if not name.startswith(prefix)}
    save_file(others, original / "model.safetensors")
    assert not verify(original).passed  # now the decoys are all there is
    whole_clip = tower | {"text_model.final_layer_norm.bias": torch.zeros(2)}
    save_file(whole_clip, original / "vision_tower" / "model.safetensors")
    assert verify(original).passed


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        del weights[name]

    return change


def add(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        weights[name] = torch.zeros(*shape)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("model.layers.1.mlp.up_proj.weight"), "language_model.model.layers.1.mlp.up_proj"),
        (drop("lm_head.weight"), "lm_head.weight"),
        (drop("model.mm_projector.2.bias"), "projector.linear_2.bias"),
        (add("model.layers.2.mlp.up_proj.weight", 2, 2), "model.layers.2.mlp.up_proj.weight"),
        (add("model.image_newline", 64), "model.image_newline"),
        (add("lm_head.weight", 399, 64), "lm_head.weight has shape (399, 64)"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    original: Path, change: Callable[[dict[str, Tensor]], None], named: str
) -> None:
    edit_weights(original, change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(original)
    assert named in caught.value.message


def test_computed_and_unused_tensors_are_left_alone(original: Path) -> None:
    edit_weights(original, add("model.layers.0.self_attn.rotary_emb.inv_freq", 8))
    checkpoint = open_checkpoint(original, device="cpu")
    assert checkpoint.model.vision_tower.config.num_hidden_layers == 2  # of 3: layer −2 is enough
    assert len(checkpoint.model.vision_tower.encoder.layers) == 2


def test_tied_embeddings_need_no_head(original: Path) -> None:
    edit_weights(original, drop("lm_head.weight"))
    edit_json(original / "config.json", tie_word_embeddings=True)
    model = open_checkpoint(original, device="cpu").model.language_model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config.json", {"model_type": "qwen2_vl"}, "qwen2_vl"),
        ("config.json", {"mm_projector_type": "linear"}, "linear"),
        ("config.json", {"mm_vision_select_layer": -9}, "-9"),
        ("config.json", {"matryoshka_vis_token_scale": [1, 100]}, "100"),
        ("config.json", {"mm_vision_tower": "nowhere"}, "nowhere"),
    ],
)
def test_configs_that_cannot_be_served_are_refused(
    original: Path, file: str, changes: dict[str, object], named: str
) -> None:
    edit_json(original / file, **changes)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(original)
    assert named in caught.value.message


def test_damaged_files_are_refused(original: Path) -> None:
    weights = original / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(original)
    weights.unlink()
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(original)
    (original / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(original)
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint("no-such-model")


def test_missing_shards_and_paths_out_of_the_folder_are_refused(original: Path) -> None:
    (original / "model.safetensors").unlink()
    index = original / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        open_checkpoint(original)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../a.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        open_checkpoint(original)


def test_sparse_and_executable_bin_files_are_refused(original: Path) -> None:
    weights = load_file(original / "model.safetensors")
    (original / "model.safetensors").unlink()
    sparse = {**weights, "lm_head.weight": weights["lm_head.weight"].to_sparse()}
    torch.save(sparse, original / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not a dense tensor"):
        open_checkpoint(original)
    torch.save({"lm_head.weight": Path("anything")}, original / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(original)


def test_the_type_asked_for_is_the_type_of_every_weight(original: Path) -> None:
    checkpoint = open_checkpoint(original, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.bfloat16}
    assert checkpoint.model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    edit_json(original / "config.json", torch_dtype="float16")
    assert open_checkpoint(original, device="cpu").dtype == torch.float32
    with pytest.raises(CheckpointError, match="int4"):
        open_checkpoint(original, dtype="int4")


def test_weights_survive_their_file(original: Path) -> None:
    checkpoint = open_checkpoint(original, device="cpu")
    weight = checkpoint.model.language_model.lm_head.weight
    before = weight.clone()
    with (original / "model.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\xff" * size)
    assert torch.equal(weight, before)


def test_the_identity_follows_weights_and_config(original: Path) -> None:
    identity = open_checkpoint(original, device="cpu").identity
    assert open_checkpoint(original, dtype="bfloat16", device="cpu").identity == identity
    edit_json(original / "config.json", rms_norm_eps=1e-5)
    with_other_config = open_checkpoint(original, device="cpu").identity

    def nudge(weights: dict[str, Tensor]) -> None:
        weights["lm_head.weight"][200, 30] += 1

    edit_weights(original, nudge)
    with_other_weights = open_checkpoint(original, device="cpu").identity
    assert len({identity, with_other_config, with_other_weights}) == 3


def test_the_identity_covers_every_byte_of_large_files(tmp_path: Path) -> None:
    large, small = tmp_path / "model.safetensors", tmp_path / "b.safetensors"
    small.write_bytes(b"small")
    with large.open("wb") as file:
        file.truncate(65 << 20)
    identities = {identity_of((large, small), b"settings")}
    with large.open("r+b") as file:
        for offset in (100_000, 33 << 20):
            file.seek(offset)
            file.write(b"x")
            file.flush()
            identities.add(identity_of((large, small), b"settings"))
    assert len(identities) == 3
    parts = [len(b"settings").to_bytes(8, "little"), b"settings"]
    parts += [(65 << 20).to_bytes(8, "little"), large.read_bytes()]
    parts += [len(b"small").to_bytes(8, "little"), b"small"]
    assert identity_of((large, small), b"settings") == digest_of(b"".join(parts))


def test_pinpoints_keep_the_layouts_order_and_orientation(
    llava_next: Checkpoint, tmp_path: Path
) -> None:
    write_llava_hf(NEXT, tmp_path / "hf")
    assert llava_next.tiling is not None
    assert llava_next.tiling.pinpoints[:2] == ((672, 336), (336, 672))
    assert open_checkpoint(tmp_path / "hf", device="cpu").tiling == llava_next.tiling
    assert image_tokens(llava_next.ladder, 1, 300, 200, llava_next.tiling) == 1


def test_a_hub_id_opens_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is out of reach of a test, the cache that downloads end in is not."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--llava-m3"
    shutil.copytree(LLAVA15, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    checkpoint = open_checkpoint("owner/llava-m3", device="cpu")
    assert checkpoint.name == "owner/llava-m3"
    with pytest.raises(CheckpointError, match="owner/other"):
        open_checkpoint("owner/other")


def test_the_packaged_model_opens_by_name() -> None:
    checkpoint = open_checkpoint("m3-tiny", device="cpu")
    assert checkpoint.ladder.scales == (1, 9, 36, 144, 576)
    assert checkpoint.preprocessing.fit == "pad"
    assert checkpoint.template.system == ""
    assert checkpoint.tokenizer is not None


def test_defaults_of_a_checkpoint_without_our_settings(speaking: Checkpoint) -> None:
    assert speaking.template.system == VICUNA_SYSTEM
    assert speaking.ladder.scales == (1, 9, 36, 144, 576)
