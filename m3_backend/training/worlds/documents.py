"""Receipts, forms and tables, with look-ups."""

from __future__ import annotations

from m3_backend.training.worlds import lettering
from m3_backend.training.worlds.canvas import FIELDS, ITEMS, MOST_COLUMNS, MOST_ROWS
from m3_backend.training.worlds.scene import Scene

_PAPER = ("white", "yellow", "pink", "cyan", "grey")
_LETTERHEADS = ("MARKET", "OFFICE", "STORE", "BUREAU")


class _Sheet:
    """A page of lines in one font and size."""

    def __init__(self, scene: Scene, columns: int, least_lines: int) -> None:
        self.scene = scene
        self.canvas = scene.fresh_canvas(scene.rng.choice(_PAPER))
        self.font = scene.font()
        self.ink = scene.rng.choice(("black", "blue", "brown", "purple"))
        side = scene.side
        # The widest line must fit, and `least_lines` of them with some air.
        probe = 20
        glyph = lettering.width_of(self.font, probe, "H") / probe
        tallest = min((side - 12) / (columns * glyph), side / (least_lines * 1.7))
        self.height = round(scene.log_uniform(10, max(10.5, min(tallest, 40))))
        self.pitch = self.height * scene.rng.uniform(1.5, 1.9)
        if scene.shift == "density":
            self.pitch = self.height * 1.35
        self.left = scene.rng.uniform(3, max(3.5, side - columns * glyph * self.height - 4))
        self.width = columns * glyph * self.height
        self.top = scene.rng.uniform(3, max(3.5, side - least_lines * self.pitch))

    def write(self, line: int, text: str, x: float, row: str = "nothing", column: int = 0) -> None:
        y = self.top + line * self.pitch
        self.canvas.text(x, y, text, self.font, self.height, self.ink, row, column)

    def write_right(self, line: int, text: str, row: str) -> None:
        end = self.left + self.width
        self.write(line, text, end - lettering.width_of(self.font, self.height, text), row)

    def room(self) -> int:
        """Lines that still fit below the top margin."""
        return int((self.scene.side - 4 - self.top) / self.pitch)


def receipt(scene: Scene) -> None:
    rng = scene.rng
    sheet = _Sheet(scene, columns=12, least_lines=4)
    count = round(scene.log_uniform(2, max(2, min(10, sheet.room() - 2))))
    items = rng.sample(ITEMS, count)
    cents = [rng.randint(10, 990) * 5 for _ in items]
    sheet.write(0, rng.choice(_LETTERHEADS), sheet.left)
    for line, (item, price) in enumerate(zip(items, cents, strict=True), start=1):
        sheet.write(line, item.upper(), sheet.left, item)
        sheet.write_right(line, _money(price), item)
    sheet.write(count + 1, "TOTAL", sheet.left, "total")
    sheet.write_right(count + 1, _money(sum(cents)), "total")
    scene.ask("documents", "total", _money(sum(cents)), sheet.height)
    for index in rng.sample(range(count), min(2 * scene.rounds, count)):
        scene.ask("documents", "price", _money(cents[index]), sheet.height, item=items[index])
    scene.ask("document_kind", "document_kind", "receipt", sheet.height)


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def form(scene: Scene) -> None:
    rng = scene.rng
    sheet = _Sheet(scene, columns=12, least_lines=3)
    count = round(scene.log_uniform(2, max(2, min(len(FIELDS), sheet.room()))))
    fields = rng.sample(FIELDS, count)
    values = []
    for line, field in enumerate(fields):
        value = lettering.number(rng, 5) if rng.random() < 0.5 else lettering.word(rng, 6)
        values.append(value)
        sheet.write(line, field.upper(), sheet.left, field)
        x = sheet.left + sheet.width * 0.5
        sheet.write(line, value, x, field)
        y = sheet.top + line * sheet.pitch + sheet.height + 2
        sheet.canvas.line([(x, y), (sheet.left + sheet.width, y)], "grey", 1)
    for index in rng.sample(range(count), min(2 * scene.rounds, count)):
        scene.ask("documents", "field", values[index], sheet.height, field=fields[index])
    scene.ask("document_kind", "document_kind", "form", sheet.height)


def table(scene: Scene) -> None:
    rng = scene.rng
    columns = rng.randint(2, MOST_COLUMNS)
    sheet = _Sheet(scene, columns=4 * (columns + 1), least_lines=3)
    rows = round(scene.log_uniform(2, max(2, min(MOST_ROWS, sheet.room() - 1))))
    pitch = sheet.width / (columns + 1)
    values = [[str(rng.randint(0, 99)) for _ in range(columns)] for _ in range(rows)]
    for column in range(columns):
        sheet.write(0, lettering.LETTERS[column], sheet.left + (column + 1) * pitch)
    for row in range(rows):
        name = f"row {row + 1}"
        sheet.write(row + 1, str(row + 1), sheet.left, name)
        for column in range(columns):
            x = sheet.left + (column + 1) * pitch
            sheet.write(row + 1, values[row][column], x, name, column + 1)
    for line in range(rows + 1):
        y = sheet.top + line * sheet.pitch + sheet.height + 2
        sheet.canvas.line([(sheet.left, y), (sheet.left + sheet.width, y)], "grey", 1)
    cells = rng.sample(range(rows * columns), min(2 * scene.rounds, rows * columns))
    for row, column in (divmod(cell, columns) for cell in cells):
        place = {"row": str(row + 1), "column": lettering.LETTERS[column]}
        scene.ask("documents", "cell", values[row][column], sheet.height, **place)
    scene.ask("document_kind", "document_kind", "table", sheet.height)
