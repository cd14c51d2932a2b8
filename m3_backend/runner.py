"""Runs the network: images to features, prompts to first logits, tokens to next logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m3_backend.checkpoint import Checkpoint
from m3_backend.decoder import Decoder
from m3_backend.errors import InvalidImageError
from m3_backend.kv_cache import Span, TokenCache
from m3_backend.messages import ImageInput
from m3_backend.preprocess import decode_image
from m3_backend.prompt import Prompt
from m3_backend.vision import assemble


class ModelRunner:
    """A checkpoint with KV memory for `tokens` tokens. Not thread-safe.

    `pixels`, `features`, `encode` and `embed` alone may be called from other threads.
    """

    def __init__(self, checkpoint: Checkpoint, *, tokens: int) -> None:
        self.checkpoint = checkpoint
        self.cache = TokenCache(
            checkpoint.shape, tokens=tokens, dtype=checkpoint.dtype, device=checkpoint.device
        )
        self._decoder = Decoder(checkpoint.model.language_model, self.cache)

    @torch.inference_mode()
    def encode(self, image: ImageInput) -> Tensor:
        """Image file → full-grid features [tiles, grid², hidden] in main memory.

        Raises:
            InvalidImageError: the bytes do not decode, or not to the declared size where it counts.
        """
        return self.features(self.pixels(image))

    def pixels(self, image: ImageInput) -> Tensor:
        """Image file → pixels [tiles, 3, side, side]. Raises what `encode` does."""
        picture = decode_image(image.data)
        if self.checkpoint.tiling and picture.size != (image.width, image.height):
            raise InvalidImageError("The image's size is not the one that was declared for it.")
        return torch.from_numpy(self.checkpoint.preprocessing.pixels(picture))

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Pixels of one or more images → features [tiles, grid², hidden] in main memory.

        What one tile gives depends on the others of the pass in rounding only.
        """
        return self.checkpoint.model.encode(pixels.to(self.checkpoint.device)).cpu()

    @torch.inference_mode()
    def embed(
        self, prompt: Prompt, images: Sequence[ImageInput], features: Sequence[Tensor]
    ) -> Tensor:
        """The prompt as input embeddings [tokens, hidden].

        Args:
            features: per image of the request, [tiles, scale, hidden] as `vision.pool` gives.
        """
        checkpoint = self.checkpoint
        newline = checkpoint.model.image_newline
        pieces = [self.embed_tokens(prompt.runs[0])]
        for index, run in zip(prompt.images, prompt.runs[1:], strict=True):
            own = features[index].to(checkpoint.device, checkpoint.dtype)
            image = images[index]
            pieces.append(assemble(own, image.width, image.height, checkpoint.tiling, newline))
            pieces.append(self.embed_tokens(run))
        return torch.cat(pieces)

    @torch.inference_mode()
    def embed_tokens(self, tokens: Sequence[int]) -> Tensor:
        """Token ids → [tokens, hidden]."""
        return self._decoder.embed(
            torch.tensor(tokens, dtype=torch.long, device=self.checkpoint.device)
        )

    @torch.inference_mode()
    def prefill(self, spans: Sequence[Span], prompts: Sequence[Tensor]) -> Tensor:
        """Compute spans; the logits after each, float32 [spans, vocabulary].

        Args:
            prompts: the embeddings of each span's new tokens.
        """
        return self._next(spans, torch.cat(list(prompts)))

    @torch.inference_mode()
    def hidden(self, spans: Sequence[Span], prompts: Sequence[Tensor]) -> list[Tensor]:
        """Like `prefill`, but the hidden states of every new token, per span [tokens, hidden]."""
        plan = self.cache.plan(spans)
        hidden = self._decoder.forward(torch.cat(list(prompts)), plan, last_only=False)
        return list(torch.split(hidden, [span.new for span in spans]))

    @torch.inference_mode()
    def decode(self, spans: Sequence[Span], tokens: Sequence[int]) -> Tensor:
        """Append one token to each; the next logits, float32 [tokens, vocabulary]."""
        return self._next(spans, self.embed_tokens(tokens))

    def _next(self, spans: Sequence[Span], batch: Tensor) -> Tensor:
        hidden = self._decoder.forward(batch, self.cache.plan(spans), last_only=True)
        return self.logits(hidden)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden)
