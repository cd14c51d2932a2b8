"""Coloured shapes: background, dominance, existence, naming, counting and places."""

from __future__ import annotations

import math
from dataclasses import dataclass

from m3_backend.training.worlds.canvas import SHAPES
from m3_backend.training.worlds.palette import readable_on
from m3_backend.training.worlds.scene import Scene


@dataclass(frozen=True, slots=True)
class Placed:
    shape: str
    colour: str
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.size / 2, self.y + self.size / 2


def ask_background(scene: Scene) -> None:
    scene.ask("background", "background", scene.canvas.ground, scene.side)


def ask_existence(scene: Scene, placed: list[Placed]) -> None:
    for _ in range(scene.rounds):
        kind = scene.rng.choices(("exists", "exists_colour", "exists_shape"), (0.5, 0.25, 0.25))[0]
        _ask_whether(scene, kind, placed)


def _ask_whether(scene: Scene, kind: str, placed: list[Placed]) -> None:
    """Yes and no are equally likely; a wrong candidate shares colour or shape with a right one."""
    rng = scene.rng
    target = rng.choice(placed)
    other_colours = [(c, target.shape) for c in readable_on(scene.canvas.ground)]
    other_shapes = [(target.colour, shape) for shape in SHAPES]
    options = {
        "exists": rng.choice((other_colours, other_shapes)),
        "exists_colour": other_colours,
        "exists_shape": other_shapes,
    }[kind]
    there = {_as_asked(kind, p.colour, p.shape) for p in placed}
    absent = [each for each in options if _as_asked(kind, *each) not in there]
    colour, shape, answer = target.colour, target.shape, "yes"
    if absent and rng.random() < 0.5:
        (colour, shape), answer = rng.choice(absent), "no"
    scene.ask("existence", kind, answer, target.size, colour=colour, shape=shape)


def _as_asked(kind: str, colour: str, shape: str) -> tuple[str, ...]:
    return {"exists": (colour, shape), "exists_colour": (colour,), "exists_shape": (shape,)}[kind]


def _ask_naming(scene: Scene, placed: list[Placed]) -> None:
    by_colour = [p for p in placed if sum(q.colour == p.colour for q in placed) == 1]
    by_shape = [p for p in placed if sum(q.shape == p.shape for q in placed) == 1]
    for p in _some(scene, by_colour):
        scene.ask("naming", "shape_of", p.shape, p.size, colour=p.colour)
    for p in _some(scene, by_shape):
        scene.ask("naming", "colour_of", p.colour, p.size, shape=p.shape)


def _some(scene: Scene, placed: list[Placed]) -> list[Placed]:
    return scene.rng.sample(placed, min(scene.rounds, len(placed)))


def _ask_counts(scene: Scene, placed: list[Placed]) -> None:
    rng = scene.rng
    smallest = min(p.size for p in placed)
    scene.ask("counting", "count_all", str(len(placed)), smallest)
    for _ in range(scene.rounds):
        p = rng.choice(placed)
        draw = rng.random()
        if draw < 0.4:
            count = sum(q.colour == p.colour for q in placed)
            scene.ask("counting", "count_some", str(count), smallest, what=p.colour)
        elif draw < 0.8:
            count = sum(q.shape == p.shape for q in placed)
            scene.ask("counting", "count_these", str(count), smallest, what=_plural(p.shape))
        else:
            count = sum(q.name == p.name for q in placed)
            scene.ask("counting", "count_these", str(count), smallest, what=_plural(p.name))


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _ask_places(scene: Scene, placed: list[Placed]) -> None:
    rng = scene.rng
    unique = [p for p in placed if sum(q.name == p.name for q in placed) == 1]
    for p in _some(scene, unique):
        x, y = p.centre
        row = "top" if y < scene.side / 2 else "bottom"
        where = f"{row} {'left' if x < scene.side / 2 else 'right'}"
        clear = min(abs(x - scene.side / 2), abs(y - scene.side / 2)) > p.size / 4
        # A quarter picture lies anywhere in the tower's view: its corners are not the view's.
        if clear and scene.side >= 300:
            scene.ask("spatial", "where", where, p.size, a=p.name)
    for _ in range(scene.rounds if len(unique) > 1 else 0):
        a, b = rng.sample(unique, 2)
        dx, dy = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
        along, options = max(
            (dx, ("left of", "right of")), (dy, ("above", "below")), key=lambda t: abs(t[0])
        )
        true, false = options if along > 0 else options[::-1]
        yes = rng.random() < 0.5
        detail = min(a.size, b.size)
        relation = true if yes else false
        scene.ask(
            "spatial",
            "relation",
            "yes" if yes else "no",
            detail,
            a=a.name,
            b=b.name,
            relation=relation,
        )


def _scatter(scene: Scene, count: int, cells: int) -> list[Placed]:
    """Draws `count` shapes in a grid of `cells` × `cells`, each somewhere in a cell of its own."""
    rng, cell = scene.rng, scene.side / cells
    few_colours = rng.sample(readable_on(scene.canvas.ground), rng.randint(2, 4))
    few_shapes = rng.sample(SHAPES, rng.randint(1, 4))
    varied = count <= 6 or rng.random() < 0.3
    placed = []
    for index in sorted(rng.sample(range(cells * cells), count)):
        size = cell * rng.uniform(0.5, 0.92)
        x = index % cells * cell + rng.uniform(0, cell - size)
        y = index // cells * cell + rng.uniform(0, cell - size)
        shape = rng.choice(SHAPES if varied else few_shapes)
        colour = rng.choice(readable_on(scene.canvas.ground) if varied else few_colours)
        placed.append(Placed(shape, colour, x, y, size))
        scene.canvas.shape(shape, x, y, size, colour)
    return placed


def several(scene: Scene) -> None:
    """1–20 shapes of any size; the density decides how fine one has to look."""
    rng = scene.rng
    most = 20 if scene.side >= 300 else 10
    count = round(scene.log_uniform(1, most))
    if scene.shift == "density":
        count = rng.randint(21, 24) if scene.side >= 300 else most
    least_cells = math.ceil(math.sqrt(count))
    most_cells = max(least_cells, scene.side // 28)
    cells = round(scene.log_uniform(least_cells, most_cells))
    placed = _scatter(scene, count, cells)
    ask_background(scene)
    _ask_counts(scene, placed)
    ask_existence(scene, placed)
    _ask_naming(scene, placed)
    _ask_places(scene, placed)


def dominant(scene: Scene) -> None:
    """One large shape, with a few small ones around it."""
    rng, side = scene.rng, scene.side
    size = side * rng.uniform(0.45, 0.8)
    x, y = rng.uniform(0, side - size), rng.uniform(0, side - size)
    small = _scatter(scene, rng.randint(0, 5), 8 if side >= 300 else 5)
    small = [p for p in small if not (x - p.size < p.x < x + size and y - p.size < p.y < y + size)]
    big = Placed(rng.choice(SHAPES), rng.choice(readable_on(scene.canvas.ground)), x, y, size)
    scene.canvas.shape(big.shape, x, y, size, big.colour)
    ask_background(scene)
    scene.ask("dominance", "dominant_shape", big.shape, size)
    scene.ask("dominance", "dominant_colour", big.colour, size)
    ask_existence(scene, [big, *small])
    _ask_places(scene, [big, *small])
