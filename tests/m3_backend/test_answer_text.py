"""Streaming text: whole characters only, nothing of a stop string, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from m3_backend.answer_text import AnswerText
from m3_backend.checkpoint import Checkpoint


def as_bytes(ids: Sequence[int]) -> str:
    """The hardest tokenizer: every token is one byte."""
    return bytes(ids).decode(errors="replace")


def stream(text: AnswerText, ids: Sequence[int]) -> list[str]:
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces
    return [*pieces, text.finish()]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")))
@example("🙂")
@example("日本語 и ещё")
def test_characters_arrive_whole_and_as_soon_as_they_are(text: str) -> None:
    ids = text.encode()
    pieces = stream(AnswerText(as_bytes), ids)
    answer = text.removeprefix(" ")
    assert "".join(pieces) == answer
    assert [piece for piece in pieces if piece] == list(answer)


@given(st.text(alphabet="ab🙂"), st.lists(st.text(alphabet="ab🙂", min_size=1), max_size=3))
@example("aab", ["ab"])
@example("aba", ["bab", "a🙂"])
def test_the_answer_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    expected = text
    for end in range(len(text) + 1):
        if found := [text[:end].find(stop) for stop in stops if stop in text[:end]]:
            expected = text[: min(found)]
            break
    answer = AnswerText(as_bytes, stops)
    pieces = stream(answer, text.encode())
    assert "".join(pieces) == expected
    assert answer.stopped == any(stop in text for stop in stops)
    sent = ""
    for piece in pieces:  # at no time was part of a stop string sent
        sent += piece
        assert not any(stop in sent for stop in stops)


def test_text_that_may_become_a_stop_string_waits() -> None:
    answer = AnswerText(as_bytes, ["END"])
    assert [answer.push(byte) for byte in b"aENxEN"] == ["a", "", "", "ENx", "", ""]
    assert answer.finish() == "EN"


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    answer = AnswerText(as_bytes)
    assert answer.push(ord("a")) == "a"
    assert answer.push("🙂".encode()[0]) == ""
    assert answer.finish() == ""


def test_bytes_that_are_no_text_do_not_hold_up_the_rest() -> None:
    pieces = stream(AnswerText(as_bytes), [0x80] * 12 + list(b"ok"))
    assert "".join(pieces).endswith("ok")
    assert "".join(pieces[:12])  # before the end of the run


def test_a_real_tokenizer_streams_what_it_decodes_at_once(speaking: Checkpoint) -> None:
    assert speaking.tokenizer is not None
    text = "naïve café 日本語 🙂 What is 7919?"
    ids = speaking.tokenizer.encode(text)
    answer = AnswerText(speaking.tokenizer.decode)
    assert "".join(stream(answer, [*ids, speaking.tokenizer.eos])) == text


def test_the_space_between_template_and_answer_is_left_out_once() -> None:
    assert "".join(stream(AnswerText(as_bytes), list(b" red"))) == "red"
    assert "".join(stream(AnswerText(as_bytes), list(b"  red cat"))) == " red cat"
