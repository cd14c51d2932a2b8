"""The report and the plots: complete, self-contained, and safe with names from anybody."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3_backend.scales import ScaleLadder
from predictor.analysis import Analysis, Provenance
from predictor.analysis_plots import ACCURACY_PNG, GROUPS_PNG, MOST_GROUPS, SMALLEST_PNG
from predictor.analysis_report import HTML_FILE, JSON_FILE, render, write_analysis
from predictor.analyze import analyze
from predictor.null_table import null_table_beside, read_null_table
from predictor.records import OutcomeTable, read_outcomes
from tests.predictor import handmade

PROVENANCE = Provenance(
    "hand.parquet",
    "0123456789abcdef" * 4,
    "hand.null.parquet",
    "m3-router analyze hand.parquet",
    {"numpy": "2.0"},
    "2025-01-01 12:00 UTC",
)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.tags if attribute in attrs]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> OutcomeTable:
    return read_outcomes(handmade.write(tmp_path_factory.mktemp("by-hand") / "hand.parquet"))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = handmade.write(tmp_path_factory.mktemp("by-hand") / "hand.parquet")
    return analyze(
        read_outcomes(path),
        null=read_null_table(null_table_beside(path)),
        shape=handmade.SHAPE,
        shape_of="by hand",
    )


@pytest.fixture(scope="module")
def page(by_hand: Analysis) -> Page:
    return Page(render(by_hand, PROVENANCE))


def with_scales(table: OutcomeTable, columns: list[int], ladder: ScaleLadder) -> OutcomeTable:
    """The table with these columns as the scales of another ladder."""
    return replace(
        table,
        source=replace(table.source, ladder=ladder),
        image_tokens=np.tile(ladder.scales, (len(table), 1)),
        **{name: getattr(table, name)[:, columns] for name in ("correct", "agrees", "ms")},
    )


def test_the_figures_stand_in_the_report(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "With 16 tokens, 62.5% of the questions come out right." in text
    assert "get 87.5% right and spend 6.9 tokens on average" in text  # 48/7
    assert "8 questions about 4 pictures in 2 groups" in text
    assert "1 failed question left out" in text
    for said in ("by hand", "0123456789abcdef", "m3-router analyze hand.parquet", "numpy 2.0"):
        assert said in text
    # count falls from 75% to 50%, within the noise of four pictures
    assert "▿" in text.split("By group")[1]
    assert "scales beyond luck" in text and "+25.0" in text


def test_the_papers_table_stands_beside_the_same_scales_only(
    page: Page, table: OutcomeTable
) -> None:
    assert "TextVQA" not in page.text
    same = with_scales(table, [0, 0, 1, 1, 2], ScaleLadder())
    text = Page(render(analyze(same), PROVENANCE)).text
    assert "TextVQA" in text and "arXiv 2405.17430" in text


def test_the_report_needs_nothing_else(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for attribute in ("src", "href", "xlink:href", "style"):
        for value in page.values(attribute):
            assert "//" not in value
            assert attribute != "xlink:href" or value.startswith("#")
    assert "url(" not in page.text and "@import" not in page.text


def test_every_id_is_there_once_and_every_reference_leads_somewhere(page: Page) -> None:
    ids = Counter(page.values("id"))
    assert ids and set(ids.values()) == {1}
    assert {value.removeprefix("#") for value in page.values("xlink:href")} <= set(ids)


def test_every_colour_of_a_plot_follows_the_theme(page: Page) -> None:
    styles = [value for value in page.values("style") if "stroke" in value or "fill" in value]
    assert any("var(--accent)" in value for value in styles)
    assert not any("#" in value for value in styles)


ANYBODYS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{",
    "数字 🙂",
    "",
    "all",
    "x" * 300,
    "{{ 7 * 7 }}",
)


def test_names_from_anybody_are_shown_as_they_are(tmp_path: Path) -> None:
    table = read_outcomes(handmade.write(tmp_path / "hand.parquet")).part(
        "train", "test", "calibrate"
    )
    analysis = analyze(replace(table, group=np.array(ANYBODYS, dtype=object)))
    write_analysis(analysis, replace(PROVENANCE, outcomes=ANYBODYS[0]), tmp_path / "out")
    page = Page((tmp_path / "out" / HTML_FILE).read_text(encoding="utf-8"))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert all(name in page.text for name in ANYBODYS)
    report = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert report["groups"].keys() == set(ANYBODYS)


def test_all_files_are_written(by_hand: Analysis, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_analysis(by_hand, PROVENANCE, folder)
    pictures = {ACCURACY_PNG, GROUPS_PNG, SMALLEST_PNG}
    assert {path.name for path in folder.iterdir()} == {HTML_FILE, JSON_FILE, *pictures}
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert picture.width > 500
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # not empty


@pytest.mark.parametrize("samples", [["a1"], ["c1"], ["a2"], ["c1", "a2", "e2"]])
def test_tables_at_the_edge_have_reports(samples: list[str], table: OutcomeTable) -> None:
    """One sample, nothing right, everything right, a comparison without an interval."""
    part = table.take(np.isin(table.sample, samples))
    text = Page(render(analyze(part), PROVENANCE)).text
    assert not {"nan", "nan%", "None", "inf"} & set(text.split())


def test_agreement_is_called_by_its_name(table: OutcomeTable) -> None:
    text = " ".join(Page(render(analyze(table, target="agreement"), PROVENANCE)).text.split())
    assert "With 1 token, 50.0% of the questions get the answer that they get with 16." in text
    assert "The greedy answer equals that of the finest scale" in text


def test_a_single_scale_has_a_report(table: OutcomeTable) -> None:
    one = with_scales(table, [2], ScaleLadder((576,)))
    assert "With 576 tokens" in render(analyze(one), PROVENANCE)


def test_of_many_groups_the_largest_have_pictures(table: OutcomeTable) -> None:
    """Two samples in every group but the last, which goes without."""
    rows = np.arange(2 * MOST_GROUPS + 1)
    many = table.part("train", "test", "calibrate").take(rows % 8)
    named = replace(many, group=np.array([f"g{row // 2:02}" for row in rows], dtype=object))
    html = render(analyze(named), PROVENANCE)
    assert f"The {MOST_GROUPS} largest of {MOST_GROUPS + 1} groups." in html
    pictured = Page(html).values("aria-label")
    assert sum(": g" in label for label in pictured) == MOST_GROUPS
    assert not any(label.endswith(f"g{MOST_GROUPS}") for label in pictured)
