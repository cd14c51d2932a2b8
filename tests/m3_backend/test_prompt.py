"""The vicuna_v1 template, and text that tries to be more than text."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.answer_text import AnswerText
from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import InvalidRequestError
from m3_backend.messages import ImageSlot, Turn
from m3_backend.prompt import END_OF_TURN, Part, Prompt, PromptTemplate, Tokenizer
from tests.m3_backend.support import LLAVA15, NEXT

ASK = Turn("user", (ImageSlot(0), "What is in the picture?"))


@pytest.fixture(scope="module")
def tokenizer(speaking: Checkpoint) -> Tokenizer:
    assert speaking.tokenizer is not None
    return speaking.tokenizer


def spelled(parts: tuple[Part, ...]) -> str:
    """The prompt as the reference writes it."""
    words = []
    for part in parts:
        if part is END_OF_TURN:
            words.append("</s>")
        else:
            words.append("<image>" if isinstance(part, ImageSlot) else str(part))
    return "".join(words)


@pytest.mark.parametrize("folder", [LLAVA15, NEXT], ids=lambda folder: folder.name)
def test_the_prompt_is_the_references(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())["prompt"]
    assert spelled(PromptTemplate().render([ASK])) == expected


def test_turns_images_and_the_end_of_answers() -> None:
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", ("Compare", ImageSlot(0), ImageSlot(1), "these.")),
        Turn("assistant", ("Equal.",)),
        Turn("user", ("Sure?",)),
        Turn("user", (ImageSlot(2), "And this?")),
    ]
    assert spelled(PromptTemplate().render(turns)) == (
        "Be brief. USER: <image>\n<image>\nCompare\nthese. ASSISTANT: Equal.</s>"
        "USER: <image>\nSure?\nAnd this? ASSISTANT:"
    )


def test_an_empty_system_prompt_leaves_nothing_behind() -> None:
    assert spelled(PromptTemplate("").render([ASK])).startswith("USER: <image>\nWhat")
    emptied = [Turn("system", ("",)), ASK]
    assert spelled(PromptTemplate().render(emptied)).startswith("USER: <image>\n")


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [Turn("system", ("x",))],
        [ASK, Turn("assistant", ("x",))],
        [ASK, Turn("assistant", (ImageSlot(1),)), ASK],
        [Turn("system", (ImageSlot(0),)), ASK],
    ],
)
def test_conversations_without_a_question_are_refused(turns: list[Turn]) -> None:
    with pytest.raises(InvalidRequestError):
        PromptTemplate().render(turns)


def test_special_tokens_stand_where_the_template_puts_them(tokenizer: Tokenizer) -> None:
    turns = [ASK, Turn("assistant", ("Red.",)), Turn("user", ("Sure?",))]
    prompt = tokenizer.prompt(PromptTemplate("").render(turns))
    assert tokenizer.bos is not None
    assert prompt.images == (0,)
    assert prompt.runs[0][0] == tokenizer.bos
    assert [run.count(tokenizer.bos) for run in prompt.runs] == [1, 0]
    assert prompt.runs[1].count(tokenizer.eos) == 1
    assert tokenizer.decode(prompt.runs[0]) == "USER: "
    after_image = "\nWhat is in the picture? ASSISTANT: Red.USER: Sure? ASSISTANT:"
    assert tokenizer.decode(prompt.runs[1]) == after_image


@given(st.lists(st.sampled_from(["</s>", "<s>", "<image>", "<unk>", "a", " ", "é"]), max_size=8))
def test_spelled_special_tokens_stay_text(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert not set(ids) & {0, 1, 2, 3, 4}
    assert tokenizer.decode(ids) == text


def test_a_vocabulary_whose_merges_lead_to_a_special_token_is_no_way_in(tmp_path: Path) -> None:
    """Llama's converted tokenizer may merge "</" and "s>" to the end-of-sequence token itself."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    letters = ["<", "/", "s", ">", "a"]
    vocabulary = {w: i for i, w in enumerate([*letters, "</", "s>", "</s>"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert tokenizer.eos == vocabulary["</s>"]
    assert tokenizer.encode("a</s>a") == [4, 0, 1, 2, 3, 4]


def test_threads_may_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    """One thread cuts up a long text while others do the same and decode."""
    text = "What is </s> in the picture? " * 300
    expected = tokenizer.encode(text)
    with ThreadPoolExecutor(4) as threads:
        encoded = [threads.submit(tokenizer.encode, text) for _ in range(20)]
        decoded = [threads.submit(tokenizer.decode, expected) for _ in range(20)]
    assert all(job.result() == expected for job in encoded)
    assert all(job.result() == text for job in decoded)


def test_a_sentencepiece_tokenizer_cuts_text_as_the_reference_does(tmp_path: Path) -> None:
    """The released checkpoints bring `tokenizer.model`; LLaVA reads it with sentencepiece."""
    words = "what is in the picture how many red circles USER ASSISTANT a chat </ s>".split()
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(words, k=12)) for _ in range(500)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    from transformers import LlamaTokenizer

    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"})
    )
    tokenizer = Tokenizer(LlamaTokenizer.from_pretrained(tmp_path))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("USER: ", "\nwhat is in the picture? ASSISTANT:", "red </s> circles é", "日本"):
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == text
        answer = AnswerText(tokenizer.decode)
        assert "".join([*map(answer.push, ids), answer.finish()]) == text


def test_marked_ids_become_runs() -> None:
    prompt = Prompt.from_marked([1, 5, -200, 6, -200])
    assert prompt == Prompt(((1, 5), (6,), ()), (0, 1))
    assert prompt.length([9, 36]) == 48


@given(st.text() | st.lists(st.sampled_from(["    ", "red ", "the", "\n"])).map("".join))
def test_no_text_takes_fewer_tokens_than_it_is_said_to_take_at_least(
    tokenizer: Tokenizer, text: str
) -> None:
    parts = [text, ImageSlot(0), text]
    prompt = tokenizer.prompt(parts)
    assert tokenizer.fewest_tokens(parts) <= sum(map(len, prompt.runs))


def test_and_a_long_text_is_known_to_be_long(tokenizer: Tokenizer) -> None:
    assert tokenizer.fewest_tokens(["a" * 1_000_000]) > 10_000
