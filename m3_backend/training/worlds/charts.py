"""Bar, line and pie charts: read, compare, count."""

from __future__ import annotations

from m3_backend.training.worlds.canvas import MOST_ORDER
from m3_backend.training.worlds.palette import readable_on
from m3_backend.training.worlds.scene import Scene


def _most(scene: Scene) -> int:
    if scene.shift == "density":
        return 10
    return 8 if scene.side >= 300 else 5


def _fewest(scene: Scene) -> int:
    return 9 if scene.shift == "density" and scene.side >= 300 else 2


def bars(scene: Scene) -> None:
    rng, side = scene.rng, scene.side
    canvas = scene.fresh_canvas(rng.choice(("white", "grey", "yellow", "black")))
    ink = "white" if canvas.ground == "black" else "black"
    colours = [c for c in readable_on(canvas.ground) if c != ink]
    count = min(rng.randint(_fewest(scene), _most(scene)), len(colours))
    colours = rng.sample(colours, count)
    top = 100 if side >= 300 else 50
    values = rng.sample(range(5, top + 1, 5), count)
    glyph = round(scene.log_uniform(7, 16))
    font = scene.font()
    extent = scene.log_uniform(0.5, 1.0)
    left, base = glyph * 3.2, side - glyph * rng.uniform(0.5, 2)
    width, height = (side - left - 4) * extent, (base - glyph - 4) * extent
    for tick in range(0, top + 1, top // 5):
        y = base - height * tick / top
        canvas.line(
            [(left, y), (left + width, y)], "grey" if canvas.ground != "grey" else "white", 1
        )
        canvas.text(2, y - glyph / 2, str(tick), font, glyph, ink)
    pitch = width / count
    for i, (colour, value) in enumerate(zip(colours, values, strict=True)):
        x = left + i * pitch + pitch * 0.15
        box = (x, base - height * value / top, x + pitch * 0.7, base)
        canvas.rectangle(box, colour, "bar", order=round(MOST_ORDER * value / top))
    gaps = sorted(values)
    unit = height / top
    scene.ask("chart_kind", "chart_kind", "bar", side)
    largest = colours[values.index(gaps[-1])]
    smallest = colours[values.index(gaps[0])]
    scene.ask("chart_compare", "largest_part", largest, (gaps[-1] - gaps[-2]) * unit, part="bar")
    if rng.random() < 0.5:
        scene.ask(
            "chart_compare", "smallest_part", smallest, (gaps[1] - gaps[0]) * unit, part="bar"
        )
    scene.ask("chart_count", "count_parts", str(count), pitch, part="bar")
    for i in rng.sample(range(count), min(scene.rounds, count)):
        detail = min(5 * unit, glyph)
        scene.ask("chart_read", "bar_value", str(values[i]), detail, colour=colours[i])
    for _ in range(scene.rounds):
        i, j = rng.sample(range(count), 2)
        answer = "yes" if values[i] > values[j] else "no"
        detail = abs(values[i] - values[j]) * unit
        scene.ask("chart_compare", "taller", answer, detail, a=colours[i], b=colours[j])


def lines(scene: Scene) -> None:
    rng, side = scene.rng, scene.side
    canvas = scene.fresh_canvas(rng.choice(("white", "grey", "yellow", "black")))
    ink = "white" if canvas.ground == "black" else "black"
    options = [c for c in readable_on(canvas.ground) if c != ink]
    colours = rng.sample(options, rng.randint(1, min(4, _most(scene) - 1)))
    margin = side * rng.uniform(0.05, 0.2)
    canvas.line([(margin, margin), (margin, side - margin), (side - margin, side - margin)], ink, 2)
    points = rng.randint(2, 7)
    step = (side - 2 * margin) / max(points - 1, 1)
    thick = rng.randint(2, 5)
    rises = []
    for colour in colours:
        start, end = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
        while abs(start - end) < 0.15:
            end = rng.uniform(0.1, 0.9)
        heights = [start + (end - start) * i / max(points - 1, 1) for i in range(points)]
        heights[1:-1] = [min(0.95, max(0.05, h + rng.uniform(-0.15, 0.15))) for h in heights[1:-1]]
        track = [
            (margin + i * step, side - margin - h * (side - 2 * margin))
            for i, h in enumerate(heights)
        ]
        canvas.line(track, colour, thick, "line", order=1 + (end > start))
        rises.append(end - start)
    scene.ask("chart_kind", "chart_kind", "line", side)
    scene.ask("chart_count", "count_parts", str(len(colours)), thick, part="line")
    for i in rng.sample(range(len(colours)), min(2 * scene.rounds, len(colours))):
        detail = min(thick * 4.0, abs(rises[i]) * side)
        scene.ask(
            "chart_read", "trend", "up" if rises[i] > 0 else "down", detail, colour=colours[i]
        )


def pie(scene: Scene) -> None:
    rng, side = scene.rng, scene.side
    canvas = scene.fresh_canvas(rng.choice(("white", "grey", "yellow", "black")))
    options = readable_on(canvas.ground)
    count = min(rng.randint(_fewest(scene), _most(scene)), len(options))
    colours = rng.sample(options, count)
    parts = [rng.uniform(1, 4) for _ in colours]
    order = sorted(range(count), key=lambda i: parts[i])
    parts[order[-1]] *= 1.15
    diameter = scene.log_uniform(side * 0.2, side * 0.92)
    x, y = rng.uniform(2, side - diameter - 2), rng.uniform(2, side - diameter - 2)
    angle, whole = rng.uniform(0, 360), sum(parts)
    for colour, part in zip(colours, parts, strict=True):
        canvas.slice((x, y, x + diameter, y + diameter), angle, angle + 360 * part / whole, colour)
        angle += 360 * part / whole
    detail = (parts[order[-1]] - parts[order[-2]]) / whole * 3.14 * diameter
    scene.ask("chart_kind", "chart_kind", "pie", diameter)
    scene.ask("chart_compare", "largest_part", colours[order[-1]], detail, part="slice")
    scene.ask(
        "chart_count",
        "count_parts",
        str(count),
        parts[order[0]] / whole * 3.14 * diameter,
        part="slice",
    )
