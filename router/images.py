"""An image part's URL → ImageInput, judged by its header alone.

Nothing here decodes a pixel: caps hold before a decoder is let loose on a file. Whether the pixels
are whole is found by whoever decodes them first, the predictor or the replica; both raise
InvalidImageError.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping

from m3_backend.errors import InvalidImageError, InvalidRequestError
from m3_backend.image_header import read_header
from m3_backend.messages import ImageInput, digest_of
from router.config import ImageLimits
from router.errors import Code


def is_remote(url: str) -> bool:
    """Whether this URL asks for something to be fetched. (Whether it may be is not asked here.)"""
    return url[:8].lower().startswith(("http:", "https:"))


def read_image(
    url: str, limits: ImageLimits, param: str, fetched: Mapping[str, bytes] | None = None
) -> ImageInput:
    """The image behind an `image_url.url`.

    Args:
        param: the name of the field, for error messages.
        fetched: what was found behind remote URLs; None where nothing is ever fetched.

    Raises:
        InvalidRequestError: `remote_images_disabled`, `image_too_large`.
        InvalidImageError: not a base64 data URL, `unsupported_image_format`, or a header that makes
            no sense.
    """
    if is_remote(url):
        if fetched is None:
            raise InvalidRequestError(
                "Images are not fetched from remote URLs here; send a data URL.",
                code=Code.REMOTE_IMAGES_DISABLED,
                param=param,
            )
        data = fetched[url]
    else:
        data = _decode_data_url(url, limits, param)
    try:
        width, height = read_header(data).displayed
    except InvalidImageError as error:
        raise InvalidImageError(error.message, code=error.code, param=param) from None
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise InvalidRequestError(
            f"The image has {width}×{height} pixels; at most {limits.max_pixels:,} and "
            f"{limits.max_side:,} on a side are allowed. Scale it down.",
            code=Code.IMAGE_TOO_LARGE,
            param=param,
        )
    return ImageInput(data, digest_of(data), width, height)


def _decode_data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not (comma and url[:5].lower() == "data:" and head.lower().endswith(";base64")):
        raise InvalidImageError(
            "The image is not a data URL; send 'data:image/png;base64,…'.", param=param
        )
    if len(payload) // 4 * 3 > limits.max_bytes + 2:  # base64 padding hides up to two bytes
        raise too_many_bytes(limits.max_bytes, param)
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise InvalidImageError("The image's data is not valid base64.", param=param) from None


def too_many_bytes(limit: int, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The image has more than {limit:,} bytes; compress it or scale it down.",
        code=Code.IMAGE_TOO_LARGE,
        param=param,
    )
