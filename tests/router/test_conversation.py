from __future__ import annotations

from typing import Any

import pytest

from m3_backend.errors import ServiceError
from m3_backend.messages import ImageSlot, Turn
from router.config import ImageLimits
from router.conversation import Conversation, read_conversation, read_images
from router.schemas import ChatRequest
from tests.router.support import image_part, picture, png_header, user

IMAGE = image_part()


def read(*messages: dict[str, Any], **limits: int) -> tuple[Conversation, list[bytes]]:
    """The conversation, and its images' bytes."""
    chat = ChatRequest.model_validate({"model": "m3-auto", "messages": list(messages)})
    conversation = read_conversation(chat.messages, ImageLimits(**limits))
    images = read_images(conversation, ImageLimits(**limits))
    return conversation, [image.data for image in images]


def refusal(*messages: dict[str, Any], **limits: int) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read(*messages, **limits)
    assert caught.value.status == 400
    return caught.value


def test_turns_keep_the_order_of_text_and_images() -> None:
    first, second = picture(size=(10, 10)), picture(size=(20, 10))
    conversation, images = read(
        {"role": "developer", "content": "Be brief."},
        user("Look:", image_part(first)),
        {"role": "assistant", "content": "A square."},
        user(image_part(second, "low"), "And this?"),
    )
    assert conversation.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", ("Look:", ImageSlot(0))),
        Turn("assistant", ("A square.",)),
        Turn("user", (ImageSlot(1), "And this?")),
    )
    assert images == [first, second]
    assert [picture.detail for picture in conversation.pictures] == ["auto", "low"]
    assert conversation.question == "And this?"


def test_the_question_is_what_nobody_has_answered_yet() -> None:
    answered = user(IMAGE, "old"), {"role": "assistant", "content": "x"}
    assert read(*answered, user("new"), user("er"))[0].question == "new\ner"
    assert read(user("what?"), user(IMAGE))[0].question == "what?"


@pytest.mark.parametrize("text", [(), ("",), (" \n",)])
def test_empty_question(text: tuple[str, ...]) -> None:
    assert refusal(user(IMAGE, *text)).code == "empty_question"
    answered = user(IMAGE, "old"), {"role": "assistant", "content": "x"}, user(*text)
    assert refusal(*answered).code == "empty_question"


def test_no_image() -> None:
    assert refusal({"role": "user", "content": "What is it?"}).code == "no_image"


def test_too_many_images() -> None:
    assert read(user(IMAGE, IMAGE, "?"), max_count=2)
    assert refusal(user(IMAGE, IMAGE, IMAGE, "?"), max_count=2).code == "too_many_images"


def test_too_many_pixels_in_all_images_together() -> None:
    image = image_part(picture(size=(10, 10)))
    assert read(user(image, image, "?"), max_total_pixels=200)
    error = refusal(user(image, image, "?"), max_total_pixels=199)
    assert (error.code, error.param) == ("image_too_large", "messages")


def test_the_shipped_limits_bound_the_pixels_of_a_request() -> None:
    big = image_part(png_header(7000, 7000))
    assert read(user(big, big, "?"))
    assert refusal(user(big, big, big, "?")).code == "image_too_large"


def test_images_stand_in_user_messages() -> None:
    error = refusal({"role": "assistant", "content": [IMAGE]}, user(IMAGE, "?"))
    assert (error.code, error.param) == ("invalid_request", "messages[0].content[0].image_url")


def test_the_user_has_the_last_word() -> None:
    error = refusal(user(IMAGE, "?"), {"role": "assistant", "content": "It"})
    assert (error.code, error.param) == ("invalid_request", "messages")


def test_a_bad_image_is_named() -> None:
    error = refusal(user(IMAGE, "?"), user("and", image_part("nonsense")))
    assert (error.code, error.param) == (
        "invalid_image",
        "messages[1].content[1].image_url.url",
    )


def test_remote_urls_are_told_apart_and_named_once() -> None:
    url = "https://example.org/a.png"
    remote = {"type": "image_url", "image_url": {"url": url}}
    chat = ChatRequest.model_validate(
        {"model": "m3-auto", "messages": [user(IMAGE, remote), user(remote, "?")]}
    )
    conversation = read_conversation(chat.messages, ImageLimits())
    assert conversation.remote() == {url: "messages[0].content[1].image_url.url"}
    data = picture(size=(7, 5))
    images = read_images(conversation, ImageLimits(), {url: data})
    assert [image.data for image in images] == [picture(), data, data]
    with pytest.raises(ServiceError) as caught:
        read_images(conversation, ImageLimits(), {url: b"<html>"})
    assert caught.value.code == "unsupported_image_format"
