"""The built-in page's files, what stands around them, and who may see what."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from router.auth import digest_of_key
from router.config import RouterConfig
from router.dashboard.examples import read_examples
from router.dashboard.page import STATIC
from router.http import build_app
from router.service import RoutingService
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import app_of, client_of, picture

OURS = sorted(p for p in STATIC.rglob("*") if p.is_file() and "vendor" not in p.parts)
KEY = "sk-m3-" + "k" * 40


@pytest.fixture
def client() -> httpx.AsyncClient:
    return client_of(app_of(FakeBackend(), FakePredictor()))


def guarded(folder: Path) -> httpx.AsyncClient:
    """A service with one key."""
    keys = folder / "keys.yaml"
    keys.write_text(f"- name: alice\n  sha256: {digest_of_key(KEY).hex()}\n")
    return client_of(app_of(FakeBackend(), FakePredictor(), access={"keys": str(keys)}))


class Links(HTMLParser):
    """What a page loads, and what of it could run in place."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        if tag in ("script", "link"):
            self.loaded.append(given.get("src") or given.get("href") or "")


@pytest.mark.parametrize("path", ["/", "/dashboard"])
async def test_the_page_loads_its_own_files_and_nothing_else(
    client: httpx.AsyncClient, path: str
) -> None:
    page = await client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = Links()
    links.feed(page.text)
    assert links.inline == []
    assert links.loaded
    for link in links.loaded:
        file = await client.get(str(httpx.URL(f"http://router{path}").join(link)))
        assert file.status_code == 200, link


async def test_every_answer_of_the_page_carries_the_policy(client: httpx.AsyncClient) -> None:
    for path in ("/", "/dashboard", "/dashboard/static/app.js", "/dashboard/examples"):
        fields = (await client.get(path)).headers
        policy = dict(part.split(" ", 1) for part in fields["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["frame-ancestors"] == "'none'"
        assert fields["x-content-type-options"] == "nosniff"


async def test_files_are_sent_once_and_small(client: httpx.AsyncClient) -> None:
    path = "/dashboard/static/app.js"
    async with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as response:
        sent = b"".join([piece async for piece in response.aiter_raw()])
    assert response.headers["content-encoding"] == "gzip"
    assert gzip.decompress(sent) == (STATIC / "app.js").read_bytes()
    again = await client.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = await client.get(path, headers={"accept-encoding": "identity"})
    assert plain.content == (STATIC / "app.js").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "/etc/passwd", "vendor", ""],
)
async def test_only_the_pages_own_files_are_there(client: httpx.AsyncClient, name: str) -> None:
    for folder in ("static", "examples"):
        answer = await client.get(f"/dashboard/{folder}/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


async def test_with_keys_the_page_is_there_and_what_it_shows_is_not(tmp_path: Path) -> None:
    client = guarded(tmp_path)
    for path in ("/", "/dashboard", "/dashboard/static/app.js", "/dashboard/examples"):
        assert (await client.get(path)).status_code == 200
    assert (await client.get("/dashboard/setup")).status_code == 401
    allowed = await client.get("/dashboard/setup", headers={"authorization": f"Bearer {KEY}"})
    assert allowed.status_code == 200


async def test_the_setup_is_what_the_service_has(client: httpx.AsyncClient) -> None:
    assert (await client.get("/dashboard/setup")).json() == {
        "model": "fake",
        "scales": [1, 9, 36, 144, 576],
        "grid_side": 24,
        "tiled": False,
        "predictor": "fake-1",
        "max_regret": 0.05,
        "regret_bounds": [0.01, 0.05, 0.2],
        "max_image_bytes": 10 * 2**20,
        "views": [],
    }


async def test_examples_are_what_the_manifest_lists(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(b"not listed")
    rows = [
        {"image": "a b.png", "question": "first?", "answer": "1", "anything": "else"},
        {"image": "gone.png", "question": "second?", "answer": "2"},
        {"image": "a b.png", "question": "third?"},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    service = RoutingService(FakeBackend(), FakePredictor(), RouterConfig())
    client = client_of(build_app(service, examples=tmp_path))
    listed = (await client.get("/dashboard/examples")).json()["examples"]
    questions = [
        {"question": "first?", "answer": "1"},
        {"question": "third?", "answer": None},
    ]
    assert listed == [{"name": "a b.png", "questions": questions}]
    image = await client.get("/dashboard/examples/a%20b.png")
    assert (image.content, image.headers["content-type"]) == (picture(), "image/png")
    assert (await client.get("/dashboard/examples/secret.png")).status_code == 404


def test_without_a_manifest_there_are_no_examples(tmp_path: Path) -> None:
    assert read_examples(None).listed.examples == []
    assert read_examples(tmp_path).listed.examples == []


FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|"
    r"createContextualFragment|DOMParser|https?://(?!www\.w3\.org/2000/svg)"
)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_file_of_ours_makes_markup_or_goes_elsewhere(path: Path) -> None:
    assert not FORBIDDEN.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [p for p in OURS if p.suffix == ".css"], ids=lambda p: p.name)
def test_colours_stand_in_the_visual_language(path: Path) -> None:
    """Other files name them; white and shades over pictures are the exceptions."""
    if path.name == "language.css":
        return
    written = re.findall(r"#[0-9a-f]{3,8}\b", path.read_text(encoding="utf-8"))
    assert set(written) <= {"#fff"}


def test_what_others_made_stands_beside_its_licence() -> None:
    table = (STATIC / "vendor" / "README.md").read_text(encoding="utf-8")
    for folder in (p for p in (STATIC / "vendor").iterdir() if p.is_dir()):
        assert f"| `{folder.name}` |" in table
        assert (folder / "LICENSE").is_file()
