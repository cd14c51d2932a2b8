"""The tokenizer of m3-tiny: byte-level BPE fitted on the worlds' questions.

Any text encodes. Question words are one token each; capitals and digits stay single, so that what
is printed in a picture is spelled glyph by glyph.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from m3_backend.training.worlds.canvas import FIELDS, ITEMS, SHAPES
from m3_backend.training.worlds.palette import NAMES
from m3_backend.training.worlds.phrasings import all_phrasings

IMAGE_TOKEN = "<image>"
_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN]
_ROLES = ["USER:", "ASSISTANT:"]
_ANSWERS = [
    "yes",
    "no",
    "up",
    "down",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
    "receipt",
    "form",
]
_ANSWERS += [
    "table",
    "bar",
    "line",
    "pie",
    "slice",
    "temple",
    "flower",
    "left of",
    "right of",
    "above",
    "below",
]
_THINGS = ("total", "bars", "lines", "slices", "shape", "object", "objects", "colour", "background")
# Words of questions that nobody here trains on, so that they do not fall apart into bytes.
_COMMON = tuple(
    """
    the a an and or of to in on at is are was were be been it its this that these those with
    for from by as can could you your me my we they he she his her not do does did has have
    had will would should there here what which who when where why how many much describe
    explain show tell picture image photo person people man woman dog cat car tree house
    road sign number text word letter read write say please answer question short one two
    three four five six seven eight nine ten first last next left right top bottom middle
    big small
    """.split()
)


def _corpus() -> Iterator[str]:
    plurals = [f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES]
    words = [*NAMES, *SHAPES, *plurals, *ITEMS, *FIELDS, *_ANSWERS, *_THINGS, *_COMMON, "color"]
    templates = [t.replace("{", "").replace("}", "") for t in all_phrasings()]
    for template in templates:
        yield "\n" + template
        yield "\n" + template.capitalize()
    # Often enough that each becomes one token, which the model can tie to what it sees.
    for _ in range(200):
        for word in words:
            yield f" {word}"
    for _ in range(4):
        for word in words:
            yield f"\n{word}"


def build_tokenizer(vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Fits the tokenizer; the same library versions give the same vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[A-Z]|\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(_ROLES),
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in _ROLES])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
