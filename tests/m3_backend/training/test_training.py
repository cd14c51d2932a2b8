"""The training loop on the smallest recipe: reproducible, resumable, readable by others."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from m3_backend.scales import M3_SCALES
from m3_backend.training import train as training
from m3_backend.training.alignment import WordAlignment
from m3_backend.training.batches import NOT_WANTED, Batches, pack
from m3_backend.training.evaluate import Answer, as_markdown, tabulate
from m3_backend.training.model import TinyLlava, build_tokenizer
from m3_backend.training.publish import history, publish
from m3_backend.training.recipe import RECIPES, Recipe
from m3_backend.training.train import Run
from m3_backend.training.worlds import Question, draw
from m3_backend.training.worlds.canvas import (
    CLASSES,
    COLOUR,
    FIELDS,
    ITEMS,
    NO_COLOUR,
    ROWS,
    SHAPES,
)

SMOKE = RECIPES["smoke"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(SMOKE, tmp_path_factory.mktemp("run"), "cpu", workers=0)
    run.train()
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_the_same_seed_gives_the_same_weights(trained: Run, tmp_path: Path) -> None:
    again = Run(SMOKE, tmp_path, "cpu", workers=0)
    again.train()
    assert_same(weights(trained), weights(again))


def test_a_run_that_was_cut_ends_where_an_uncut_one_does(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # save after every step

    class Cut(Exception):
        pass

    steps = 0

    def cut_in_the_second_stage(self: Run, **entry: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # logged: steps 0 and 3 of the first stage, 0 and 3 of the second
            raise Cut

    first = Run(SMOKE, tmp_path, "cpu", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_log", cut_in_the_second_stage)
        with pytest.raises(Cut):
            first.train()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["stage"] == 1
    second = Run(SMOKE, tmp_path, "cpu", workers=0)
    second.train()
    assert_same(weights(trained), weights(second))


def test_metrics_are_written_as_it_goes(trained: Run) -> None:
    lines = [json.loads(line) for line in (trained.out / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"dense", "language"}
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_a_run_goes_on_from_a_published_checkpoint(trained: Run, tmp_path: Path) -> None:
    published = tmp_path / "published"
    publish(trained, 4, 4, to=published)
    assert "| language |" in (published / "README.md").read_text(encoding="utf-8")
    next_run = Run(SMOKE, tmp_path / "next", "cpu", workers=0)
    next_run.begin("language", published)
    stored = {k: v.to(torch.bfloat16).float() for k, v in weights(trained).items()}
    assert_same(stored, weights(next_run))
    assert next_run.resume()[:2] == (1, 0)
    next_run.train()
    assert history(next_run)["dense"] == history(trained)["dense"]
    next_run.begin("dense", published)  # has begun already: left as it is
    assert next_run.resume()[:2] == (2, 0)


def test_a_deeper_language_model_begins_by_computing_what_the_checkpoint_does(
    trained: Run, tmp_path: Path
) -> None:
    publish(trained, 2, 2, to=tmp_path / "published")
    deeper = replace(SMOKE.architecture, text_layers=3)
    assert SMOKE.architecture.text_layers < 3
    run = Run(replace(SMOKE, architecture=deeper), tmp_path / "deeper", "cpu", workers=0)
    run.begin("language", tmp_path / "published")
    same = Run(SMOKE, tmp_path / "same", "cpu", workers=0)
    same.begin("language", tmp_path / "published")
    batch = Batches(SMOKE.stages[1], run.tokenizer, questions=3, seed=1)[0]

    def logits(of: Run) -> torch.Tensor:
        visual = of.model.visual_tokens(of.model.patches(batch.pixels), 9)
        asked = (batch.text, batch.blocks, batch.positions, batch.wanted)
        return of.model.eval().answer_logits(visual, of.before, *asked)

    with torch.inference_mode():
        torch.testing.assert_close(logits(run), logits(same), atol=1e-5, rtol=1e-4)


def test_a_deeper_model_learns_in_its_new_layers_too(trained: Run, tmp_path: Path) -> None:
    publish(trained, 2, 2, to=tmp_path / "published")
    deeper = replace(SMOKE.architecture, text_layers=3)
    run = Run(replace(SMOKE, architecture=deeper), tmp_path / "deeper", "cpu", workers=0)
    run.begin("language", tmp_path / "published")
    run.train()
    silent = [
        name
        for name, value in run.model.language.layers.named_parameters()
        if name.endswith(("o_proj.weight", "down_proj.weight")) and not value.any()
    ]
    assert not silent


def test_the_tower_learns_from_the_answers_only_where_the_stage_says_so(
    trained: Run, tmp_path: Path
) -> None:
    stage = replace(SMOKE.stages[1], tower_rate=0.3)
    run = Run(SMOKE, tmp_path, "cpu", workers=0)
    batch = Batches(stage, run.tokenizer, questions=3, seed=1)[0]

    def gradient(end_to_end: bool) -> torch.Tensor:
        run._trainable(stage)
        run.model.zero_grad()
        loss, _ = run._loss(replace(stage, end_to_end=end_to_end), 0, batch)
        loss.backward()
        found = run.model.vision.encoder.layers[0].mlp.fc1.weight.grad
        assert found is not None
        return found.clone()

    assert not torch.allclose(gradient(False), gradient(True))


def test_the_dense_stage_learns(tmp_path: Path) -> None:
    stage = replace(SMOKE.stages[0], steps=25)
    Run(Recipe("short", (stage,), SMOKE.architecture), tmp_path, "cpu", workers=0).train()
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_transformers_reads_the_checkpoint_and_computes_the_same(trained: Run) -> None:
    folder = trained.out / "checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ours = trained.model.to(torch.bfloat16).float().eval()  # the checkpoint is stored in bf16
    picture = draw("test", 3)
    question = picture.questions[0]
    prompt = f"<s>USER: {'<image>' * 576}\n{question.text} ASSISTANT: {question.answer}</s>"
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    pixels = torch.frombuffer(bytearray(picture.image.tobytes()), dtype=torch.uint8).view(
        1, 336, 336, 3
    )
    normal = (pixels.permute(0, 3, 1, 2).float() - ours.mean) / ours.std
    text, blocks, positions, answers = (
        torch.tensor([row]) for row in pack(trained.tokenizer, [question], Random(0))
    )
    mask = answers != NOT_WANTED
    with torch.inference_mode():
        expected = reference(input_ids=ids, pixel_values=normal).logits[
            :, -answers[mask].numel() - 1 : -1
        ]
        features = ours.patches(pixels)
        got = ours.answer_logits(
            ours.visual_tokens(features, 576),
            trained.before,
            text,
            blocks,
            positions,
            mask.nonzero().T,
        )
    torch.testing.assert_close(got, expected[0], atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def untrained() -> TinyLlava:
    torch.manual_seed(0)
    return TinyLlava(SMOKE.architecture, build_tokenizer()).eval()


def test_a_question_is_answered_as_if_it_were_the_only_one(untrained: TinyLlava) -> None:
    tokenizer = build_tokenizer()
    questions = [
        Question("f", "what colour is the star?", "red", 1),
        Question("f", "how many bars?", "12", 1),
    ]
    before = torch.tensor([1, 5])
    visual = torch.randn(1, 9, SMOKE.architecture.text_width)

    def logits(asked: list[Question]) -> torch.Tensor:
        rows = pack(tokenizer, asked, Random(0), conversations=0.0)
        text, blocks, positions, answers = (torch.tensor([row]) for row in rows)
        wanted = (answers != NOT_WANTED).nonzero().T
        return untrained.answer_logits(visual, before, text, blocks, positions, wanted)

    with torch.inference_mode():
        together = logits(questions)
        apart = torch.cat([logits([question]) for question in questions])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_pooling_averages_cells_of_the_projected_grid(untrained: TinyLlava) -> None:
    features = torch.randn(2, 576, SMOKE.architecture.vision_width)
    with torch.inference_mode():
        fine = untrained.projector(features).view(2, 24, 24, -1)
        for scale in M3_SCALES:
            side = math.isqrt(scale)
            cells = fine.view(2, side, 24 // side, side, 24 // side, -1).mean(dim=(2, 4))
            got = untrained.visual_tokens(features, scale)
            torch.testing.assert_close(got, cells.view(2, scale, -1), atol=1e-5, rtol=1e-4)


def test_a_small_picture_uses_a_window_of_the_positions(untrained: TinyLlava) -> None:
    pixels = torch.randint(0, 255, (1, 168, 168, 3), dtype=torch.uint8)
    with torch.inference_mode():
        here, there = untrained.patches(pixels, (0, 0)), untrained.patches(pixels, (12, 12))
    assert here.shape == (1, 144, SMOKE.architecture.vision_width)
    assert not torch.allclose(here, there)


def test_a_batch_is_a_function_of_its_number() -> None:
    batches = Batches(SMOKE.stages[1], build_tokenizer(), questions=3, seed=7)
    first, again, other = batches[2], batches[2], batches[3]
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.text, again.text)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.classes.shape == (8, 144, 8)
    assert (first.answers != NOT_WANTED).any(dim=1).all()


def test_processes_that_train_together_share_out_the_pictures() -> None:
    whole = Batches(SMOKE.stages[1], build_tokenizer(), questions=3, seed=7)[2].pixels
    shares = [
        Batches(SMOKE.stages[1], build_tokenizer(), 3, 7, rank, ranks=2)[2].pixels
        for rank in (0, 1)
    ]
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), whole)


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "m3_backend.training.train", "--recipe=smoke", f"--out={tmp_path}"]
    subprocess.run([*command, "--workers=0", "--device=cpu"], check=True, timeout=240)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4  # one process writes
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()


def test_a_run_goes_on_with_another_tokenizer(trained: Run, tmp_path: Path) -> None:
    published = tmp_path / "published"
    publish(trained, 2, 2, to=published)
    next_run = Run(SMOKE, tmp_path / "next", "cpu", workers=0)
    here, there = training._common_tokens(build_tokenizer(900), published)
    assert len(here) > 800
    theirs = trained.tokenizer.convert_ids_to_tokens(there)
    assert build_tokenizer(900).convert_ids_to_tokens(here) == theirs
    next_run.begin("language", published)


@pytest.mark.parametrize(
    "text", ["Größe 漢字 🙂", "tab\tand\nline", "what is the total?", "<image> </s> USER:"]
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_accuracy_is_counted_per_family_and_scale() -> None:
    answers = [
        Answer("a", 1, True),
        Answer("a", 1, False),
        Answer("b", 1, True),
        Answer("b", 9, True),
    ]
    table = tabulate(answers)
    assert table["a"] == {1: 0.5}
    assert table["b"] == {1: 1.0, 9: 1.0}
    assert table["all"][1] == pytest.approx(2 / 3)
    assert as_markdown(table).splitlines()[-1].startswith("| all |")


def test_cross_entropy_ignores_questions(untrained: TinyLlava) -> None:
    batch = Batches(SMOKE.stages[1], build_tokenizer(), questions=3, seed=1)[0]
    mask = batch.answers != NOT_WANTED
    visual = untrained.visual_tokens(untrained.patches(batch.pixels), 9)
    logits = untrained.answer_logits(
        visual, torch.tensor([1]), batch.text, batch.blocks, batch.positions, batch.wanted
    )
    assert logits.shape == (int(mask.sum()), 1024)
    assert F.cross_entropy(logits, batch.answers[mask]).item() == pytest.approx(
        math.log(1024), rel=0.2
    )


def test_tokens_that_point_at_the_right_words_are_aligned() -> None:
    tokenizer = build_tokenizer()
    alignment = WordAlignment(tokenizer)
    embeddings = torch.eye(1024)
    star, red, tea = (
        tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in ("star", "red", "tea")
    )
    labels = {
        "classes": torch.full((1, 2, 8), CLASSES.index("star"), dtype=torch.uint8),
        "colours": torch.full((1, 2, 4), COLOUR["red"], dtype=torch.uint8),
        "rows": torch.full((1, 2, 4), ROWS.index("tea"), dtype=torch.uint8),
    }
    told = (embeddings[star] + embeddings[red] + embeddings[tea]).expand(1, 2, -1)
    other = (embeddings[star + 1] + embeddings[red] + embeddings[tea]).expand(1, 2, -1)
    assert alignment(told, embeddings, labels) < alignment(other, embeddings, labels) - 1
    labels["colours"][:] = NO_COLOUR
    assert alignment(told, embeddings, labels).isfinite()


def test_words_that_name_what_is_drawn_are_one_token_each() -> None:
    tokenizer = build_tokenizer()
    for word in (*SHAPES, *COLOUR, *ITEMS, *FIELDS, "total", "bar", "line", "slice"):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
