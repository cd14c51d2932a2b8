"""Runs the network: images to features, prompts to first logits, tokens to next logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import InvalidImageError
from m3_backend.kv_cache import SlotCache
from m3_backend.messages import ImageInput
from m3_backend.preprocess import decode_image
from m3_backend.prompt import Prompt
from m3_backend.vision import assemble


class ModelRunner:
    """A checkpoint with room for `slots` requests of up to `length` tokens. Not thread-safe.

    `encode` alone may be called from other threads.
    """

    def __init__(self, checkpoint: Checkpoint, *, slots: int, length: int) -> None:
        self.checkpoint = checkpoint
        self.cache = SlotCache(
            checkpoint.shape,
            slots=slots,
            length=length,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
        )
        self._decoder = checkpoint.model.language_model.model
        self._head = checkpoint.model.language_model.lm_head

    @torch.inference_mode()
    def encode(self, image: ImageInput) -> Tensor:
        """Image file → full-grid features [tiles, grid², hidden] in main memory.

        Always one image at a time, so that its features never depend on who else asked.

        Raises:
            InvalidImageError: the bytes do not decode, or not to the declared size where it counts.
        """
        picture = decode_image(image.data)
        if self.checkpoint.tiling and picture.size != (image.width, image.height):
            raise InvalidImageError("The image's size is not the one that was declared for it.")
        pixels = torch.from_numpy(self.checkpoint.preprocessing.pixels(picture))
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
        ids = torch.tensor(tokens, dtype=torch.long, device=self.checkpoint.device)
        return cast(Tensor, self._decoder.embed_tokens(ids))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tensor], first_slot: int = 0) -> Tensor:
        """Fill one slot per prompt; the logits after each, float32 [prompts, vocabulary]."""
        hidden = self.hidden(prompts, first_slot)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=hidden.device)
        return self.logits(hidden[torch.arange(len(prompts), device=hidden.device), last])

    @torch.inference_mode()
    def hidden(self, prompts: Sequence[Tensor], first_slot: int = 0, start: int = 0) -> Tensor:
        """Like `prefill`, but the hidden states of every position [prompts, longest, hidden].

        Prompts are padded at the end, where causal attention lets nobody see the padding.

        Args:
            start: these are the rests of prompts whose first `start` tokens the slots hold already.
        """
        self.cache.begin_prefill(first_slot, start)
        padded = pad_sequence(list(prompts), batch_first=True)
        positions = torch.arange(start, start + padded.shape[1], device=padded.device)[None]
        output = self._decoder(
            inputs_embeds=padded,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Append one token to each of slots 0, 1, …; the next logits, float32 [tokens, vocabulary].

        Args:
            lengths: tokens that each slot holds already.
        """
        positions, mask = self.cache.begin_decode(lengths)
        output = self._decoder(
            input_ids=torch.tensor(tokens, device=self.checkpoint.device)[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self.logits(output.last_hidden_state[:, 0])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self._head(hidden)).float()
