"""A chat request's messages → turns and images as the backend takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from m3_backend.errors import InvalidRequestError
from m3_backend.messages import ImageInput, ImageSlot, Role, Turn
from router.config import ImageLimits
from router.errors import Code
from router.images import is_remote, read_image
from router.schemas import Detail, Message, TextPart

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image part: its URL, its `detail`, and the request's field, for error messages."""

    url: str
    detail: Detail
    param: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked.

    Args:
        pictures: in the order in which they appear; `ImageSlot.index` in `turns` points into them.
        question: text of the last user turn, which the scales are chosen for.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Picture, ...]
    question: str

    def text_bytes(self) -> int:
        """UTF-8 bytes of all text, images aside."""
        return sum(
            len(part.encode())
            for turn in self.turns
            for part in turn.content
            if isinstance(part, str)
        )

    def remote(self) -> dict[str, str]:
        """The URLs that would have to be fetched, each with the field that names it first."""
        return {p.url: p.param for p in reversed(self.pictures) if is_remote(p.url)}


def read_conversation(messages: Sequence[Message], limits: ImageLimits) -> Conversation:
    """The conversation of a request, before anybody has looked at its images.

    Raises:
        InvalidRequestError: `no_image`, `too_many_images`, `empty_question`, an image outside a
            user message, or a conversation that does not end with the user.
    """
    pictures: list[Picture] = []
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        pieces: list[str | ImageSlot] = []
        for place, part in enumerate(message.parts()):
            if isinstance(part, TextPart):
                pieces.append(part.text)
                continue
            name = f"messages[{index}].content[{place}].image_url"
            if message.role != "user":
                raise InvalidRequestError("Only user messages may hold images.", param=name)
            pieces.append(ImageSlot(len(pictures)))
            pictures.append(Picture(part.image_url.url, part.image_url.detail, f"{name}.url"))
        turns.append(Turn(ROLES[message.role], tuple(pieces)))

    if not pictures:
        raise InvalidRequestError(
            "There is no image in the conversation; add an 'image_url' part.",
            code=Code.NO_IMAGE,
            param="messages",
        )
    if len(pictures) > limits.max_count:
        raise InvalidRequestError(
            f"The conversation has {len(pictures)} images; at most {limits.max_count} are allowed.",
            code=Code.TOO_MANY_IMAGES,
            param="messages",
        )
    return Conversation(tuple(turns), tuple(pictures), _question(turns))


def read_images(
    conversation: Conversation, limits: ImageLimits, fetched: Mapping[str, bytes] | None = None
) -> tuple[ImageInput, ...]:
    """The images of a conversation in order, every one checked by its header.

    Args:
        fetched: what was found behind remote URLs; None where nothing is ever fetched.

    Raises:
        InvalidRequestError: `image_too_large` (all together), or see `read_image`.
        InvalidImageError: see `read_image`.
    """
    images = tuple(read_image(p.url, limits, p.param, fetched) for p in conversation.pictures)
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.max_total_pixels:
        raise InvalidRequestError(
            f"The images have {pixels:,} pixels together; at most {limits.max_total_pixels:,} are "
            "allowed. Scale them down.",
            code=Code.IMAGE_TOO_LARGE,
            param="messages",
        )
    return images


def _question(turns: Sequence[Turn]) -> str:
    """Text of the user turns that nobody has answered yet; the prompt joins them into one."""
    spoken = [turn for turn in turns if turn.role != "system"]
    asked = list(takewhile(lambda turn: turn.role == "user", reversed(spoken)))[::-1]
    if not asked:
        raise InvalidRequestError(
            "The conversation must end with a user message.", param="messages"
        )
    texts = [part for turn in asked for part in turn.content if isinstance(part, str)]
    question = "\n".join(texts).strip()
    if not question:
        raise InvalidRequestError(
            "The user's last message asks nothing; add a text part with the question.",
            code=Code.EMPTY_QUESTION,
            param="messages",
        )
    return question
