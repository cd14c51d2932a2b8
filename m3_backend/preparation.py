"""From a request to a prompt the model can read: validate, tokenise, get the features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from m3_backend.errors import BackendError, ContextLengthError, InvalidRequestError
from m3_backend.feature_cache import FeatureCache, FeatureSource
from m3_backend.job import Prepared, Work
from m3_backend.kv_memory import KvMemory, PrefixName
from m3_backend.messages import CacheLevel, GenerationRequest, ImageInput
from m3_backend.prompt import Prompt
from m3_backend.runner import ModelRunner
from m3_backend.scales import image_tokens
from m3_backend.tower import VisionTower
from m3_backend.vision import tile_count


class Preparation:
    """Thread-safe.

    Args:
        memory: only asked for prefixes that are there.
        context: tokens that prompt and answer may take together.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tower: VisionTower,
        cache: FeatureCache,
        memory: KvMemory,
        context: int,
    ) -> None:
        self._runner, self._tower, self._cache = runner, tower, cache
        self._memory, self._context = memory, context
        self._checkpoint = runner.checkpoint

    def conversation(self, request: GenerationRequest) -> Prompt:
        """The request's turns in the checkpoint's template.

        Raises:
            InvalidRequestError: turns that make no prompt.
            ContextLengthError: a text so long that its tokens need not be counted. A tokenizer
                holds the interpreter while it works, two seconds for a megabyte, and the requests
                that are being answered would stand still.
        """
        tokenizer = self._checkpoint.tokenizer
        if tokenizer is None:
            raise BackendError("This checkpoint has no tokenizer and cannot take conversations.")
        parts = self._checkpoint.template.render(request.turns)
        fewest = tokenizer.fewest_tokens(parts)
        if fewest >= self._context:
            raise ContextLengthError(
                f"The text takes at least {fewest} tokens; prompt and answer may take "
                f"{self._context} together. Shorten it."
            )
        return tokenizer.prompt(parts)

    def measure(self, work: Work) -> tuple[Prompt, tuple[int, ...], int]:
        """Prompt, tokens per image and room for the answer: all that can be refused without work.

        Raises:
            InvalidScaleError, InvalidRequestError, ContextLengthError
        """
        if len(work.scales) != len(work.images):
            raise InvalidRequestError("Every image needs exactly one scale.")
        ladder, tiling = self._checkpoint.ladder, self._checkpoint.tiling
        per_image = tuple(
            image_tokens(ladder, scale, image.width, image.height, tiling)
            for image, scale in zip(work.images, work.scales, strict=True)
        )
        prompt = work.make_prompt()
        if sorted(prompt.images) != list(range(len(work.images))):
            raise InvalidRequestError("Every image must stand in the conversation exactly once.")
        length = prompt.length(per_image)
        if length >= self._context:
            raise ContextLengthError(
                f"The prompt takes {length} tokens, {sum(per_image)} of them for images; with the "
                f"answer it may take {self._context}. Shorten it or use a coarser scale."
            )
        return prompt, per_image, self._context - length

    def prepare(
        self,
        work: Work,
        prompt: Prompt,
        per_image: tuple[int, ...],
        room: int,
        check_wanted: Callable[[], None],
        *,
        whole: bool,
    ) -> Prepared:
        """Features and embeddings, after `measure` found nothing to refuse.

        Args:
            whole: also if the prompt's prefix is in KV memory already, where neither its features
                nor its embeddings are needed.
            check_wanted: called before each image; what it raises ends the preparation.

        Raises:
            InvalidImageError: an image that does not decode.
        """
        limit = min(work.sampling.max_tokens or room, room)
        prefix = self._prefix(work, prompt, per_image)
        if prefix is not None and not whole and self._memory.is_ready(prefix):
            self._keep(work)
            rest = self._runner.embed_tokens(prompt.runs[-1])
            levels: list[CacheLevel] = ["prefix" for _ in per_image]
            return Prepared(rest, per_image, tuple(levels), 0.0, 0.0, False, limit, prefix)
        lookups = []
        for image, scale in zip(work.images, work.scales, strict=True):
            check_wanted()  # not within the encoding: other requests may be waiting for it
            source = self._source(image, work.salt)
            lookups.append(self._cache.get(source, scale, partial(self._tower.encode, image)))
        self._keep(work)
        features = [lookup.features for lookup in lookups]
        return Prepared(
            embeddings=self._runner.embed(prompt, work.images, features),
            image_tokens=per_image,
            cache=tuple(lookup.level for lookup in lookups),
            fetch_ms=sum(lookup.fetch_ms for lookup in lookups),
            encode_ms=sum(lookup.encode_ms for lookup in lookups),
            degraded=any(lookup.degraded for lookup in lookups),
            limit=limit,
            prefix=prefix,
        )

    def cached(self, image: ImageInput, salt: str) -> dict[int, Tensor] | None:
        """An image's features at every scale, if they need not be computed."""
        return self._cache.peek(self._source(image, salt))

    def release(self, image: ImageInput, salt: str) -> None:
        """Lets go of features that were kept for a shadow label."""
        self._cache.unpin(self._source(image, salt))

    def _keep(self, work: Work) -> None:
        if work.keep_s > 0:
            for image in work.images:
                self._cache.pin(self._source(image, work.salt), work.keep_s)

    def _prefix(self, work: Work, prompt: Prompt, per_image: tuple[int, ...]) -> PrefixName | None:
        """The prompt up to the end of its last image, if there is one and something follows it."""
        *before, rest = prompt.runs
        if not before or not rest:
            return None
        digest = hashlib.sha256()
        for run, index in zip(before, prompt.images, strict=True):
            digest.update(f"{len(run)}:{','.join(map(str, run))}:".encode())
            digest.update(self._source(work.images[index], work.salt).key(work.scales[index]))
        return PrefixName(digest.digest(), prompt.length(per_image) - len(rest))

    def _source(self, image: ImageInput, salt: str) -> FeatureSource:
        checkpoint = self._checkpoint
        return FeatureSource(
            image=image.digest,
            model=checkpoint.identity,
            processor=checkpoint.preprocessing.identity,
            salt=salt,
            ladder=checkpoint.ladder,
            tiles=tile_count(image.width, image.height, checkpoint.tiling),
            hidden=checkpoint.shape.hidden,
            dtype=checkpoint.dtype,
            storage=self._cache.storage,
        )
