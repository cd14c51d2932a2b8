"""A chat request's messages → turns and images as the backend takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from m3_backend.errors import InvalidRequestError
from m3_backend.messages import ImageInput, ImageSlot, Role, Turn
from router.config import ImageLimits
from router.errors import Code
from router.images import read_image
from router.schemas import Detail, ImagePart, Message, TextPart

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is asked.

    Args:
        images: in the order in which they appear; `ImageSlot.index` in `turns` points into them.
        details: the `detail` of each image.
        params: the request field of each image, for error messages.
        question: text of the last user turn, which the scales are chosen for.
    """

    turns: tuple[Turn, ...]
    images: tuple[ImageInput, ...]
    details: tuple[Detail, ...]
    params: tuple[str, ...]
    question: str

    def text_bytes(self) -> int:
        """UTF-8 bytes of all text, images aside."""
        return sum(
            len(part.encode())
            for turn in self.turns
            for part in turn.content
            if isinstance(part, str)
        )


def read_conversation(messages: Sequence[Message], limits: ImageLimits) -> Conversation:
    """The conversation of a request, every image checked by its header.

    Raises:
        InvalidRequestError: `no_image`, `too_many_images`, `image_too_large` (all together),
            `empty_question`, an image outside a user message, or a conversation that does not end
            with the user.
        InvalidImageError: see `read_image`.
    """
    pictures: list[tuple[ImagePart, str]] = []
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
            pictures.append((part, name))
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
    question = _question(turns)
    images = tuple(read_image(part.image_url.url, limits, f"{name}.url") for part, name in pictures)
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.max_total_pixels:
        raise InvalidRequestError(
            f"The images have {pixels:,} pixels together; at most {limits.max_total_pixels:,} are "
            "allowed. Scale them down.",
            code=Code.IMAGE_TOO_LARGE,
            param="messages",
        )
    return Conversation(
        turns=tuple(turns),
        question=question,
        images=images,
        details=tuple(part.image_url.detail for part, _ in pictures),
        params=tuple(f"{name}.url" for _, name in pictures),
    )


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
