"""Scenes over real photographs: scikit-learn's two, cropped, flipped and recoloured."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from m3_backend.training.worlds.canvas import SHAPES
from m3_backend.training.worlds.palette import NAMES
from m3_backend.training.worlds.scene import Scene
from m3_backend.training.worlds.shapes import Placed, ask_existence
from m3_backend.training.worlds.writing import print_somewhere, text_of_height

_FILES = {"temple": "china.jpg", "flower": "flower.jpg"}


@lru_cache(maxsize=2)
def _photo(what: str) -> Image.Image:
    return Image.fromarray(load_sample_image(_FILES[what]))


def _view(scene: Scene, what: str) -> Image.Image:
    rng, photo = scene.rng, _photo(what)
    span = rng.uniform(0.55, 1.0) * min(photo.size)
    x, y = rng.uniform(0, photo.width - span), rng.uniform(0, photo.height - span)
    box = (x, y, x + span, y + span)
    view = photo.resize((scene.side, scene.side), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    strongest = 1.9 if scene.shift == "palette" else 1.4
    view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.6, strongest))
    return ImageEnhance.Color(view).enhance(rng.uniform(0.2, strongest))


def photograph(scene: Scene) -> None:
    rng, side = scene.rng, scene.side
    what = rng.choice(tuple(_FILES))
    scene.canvas.photograph(_view(scene, what), what)
    scene.ask("photo", "photo", what, side)
    if rng.random() < 0.5:
        size = scene.log_uniform(20, side * 0.4)
        sticker = Placed(
            rng.choice(SHAPES),
            rng.choice(NAMES),
            rng.uniform(0, side - size),
            rng.uniform(0, side - size),
            size,
        )
        scene.canvas.shape(sticker.shape, sticker.x, sticker.y, size, sticker.colour)
        ask_existence(scene, [sticker])
        scene.ask("naming", "shape_of", sticker.shape, size, colour=sticker.colour)
        return
    height = round(scene.log_uniform(10, min(90, side * 0.4)))
    family, text = text_of_height(scene, height)
    colour = rng.choice(("white", "black", "yellow", "red", "cyan"))
    if print_somewhere(scene, text, height, colour, 0, side):
        scene.ask(family, "read_text", text, height)
        scene.ask("text_colour", "text_colour", colour, height)
