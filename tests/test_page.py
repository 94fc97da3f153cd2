"""page: one file that shows everything of the records, without a network, and works in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import pytest
import records

from hibench import cli
from hibench.errors import HibenchError
from hibench.page import write_page
from hibench.page.provenance import last_lines

PROGRAM = browser.executable()
VOID = {"meta", "input", "br", "img", "path", "use", "rect", "circle", "image"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods and a floor at two resolutions, one cell out of memory with a log, two samples per quality cell."""
    root = records.suite(tmp_path_factory.mktemp("results"), methods=("ldm", "infd", "real"), resolutions=(64, 128), steps=(),
                         sparsity=(), failures={"ldm/speed/128x128/steps=50": "oom"}, samples=2)
    made = records.record("ldm", "speed", 128, status="oom")
    (root / "cells" / made["id"][:2] / made["id"] / "log.txt").write_text(
        "started\n" + "x" * 30_000 + "\nOutOfMemoryError: <script>alert(1)</script>\n\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    return write_page(results, results / "report")[0]


class Structure(HTMLParser):
    """Every id, whether tags are balanced, and what lacks a name."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.ids += [str(said["id"])] if "id" in said else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag == "th" and "scope" not in said:
            self.wrong.append("th without scope")
        if said.get("role") in ("region", "img") and not said.get("aria-label"):
            self.wrong.append(f"{tag} of role {said['role']} without a name")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(f"</{tag}> closes nothing")


def test_the_page_is_well_formed_with_unique_ids_and_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Structure()
    found.feed(text)
    assert found.wrong == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    for link in re.findall(r'href="#([^"]+)"', text):
        assert link in found.ids, link


def test_nothing_comes_from_a_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.[a-z]{2,}[^"'\s<)]*""", text)) <= names
    assert not re.search(r"<link|@import|src=.http", text)


def test_every_record_is_in_the_page_and_text_cannot_break_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = json.loads(re.search(r'id="records">(.*?)</script>', text, re.DOTALL).group(1))  # type: ignore[union-attr]
    kept = {path.parent.name for path in page.parent.parent.glob("cells/*/*/record.json")}
    assert set(found) == kept
    assert all((page.parent / one["path"]).is_file() for one in found.values())
    for id in kept:
        assert f'data-ids="{id}' in text or f' {id}"' in text
    assert "<script>alert(1)" not in text
    assert "OutOfMemoryError: &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "in denoise: CUDA out of memory" in text
    assert "FFHQ" in text.partition('id="published"')[2]


def test_images_are_the_same_bytes_beside_the_page_or_inside_it(results: Path, page: Path, tmp_path: Path) -> None:
    kept = {path.read_bytes() for path in results.glob("cells/*/*/samples/*.png")}
    beside = list((page.parent / "samples").glob("*/*.png"))
    assert {path.read_bytes() for path in beside} == kept
    written = write_page(results, tmp_path, embed=True, plots=False)
    assert [path.name for path in written] == ["report.html"]
    assert written[0].read_text(encoding="utf-8").count("data:image/png;base64,") == len(beside)
    assert len(write_page(results, tmp_path / "one", seeds=1, plots=False)) == 1 + len(beside) // 2


def test_the_same_records_give_the_same_page_without_torch(results: Path, page: Path) -> None:
    before = page.read_bytes()
    code = ("import sys; from pathlib import Path; from hibench.page import write_page; "
            "write_page(Path(sys.argv[1]), Path(sys.argv[2])); print('torch' in sys.modules)")
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code, str(results), str(page.parent)], text=True,
                         capture_output=True, check=True)
    assert ran.stdout == "False\n"
    assert page.read_bytes() == before


def test_the_end_of_a_log_is_cut(results: Path) -> None:
    made = records.record("ldm", "speed", 128, status="oom")
    assert last_lines(results, made).splitlines()[-1].startswith("OutOfMemoryError")
    assert len(last_lines(results, made)) <= 20_000
    assert last_lines(results, {**made, "id": "nothing"}) == ""


def test_the_command(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(results), "--html", "--out", str(tmp_path)]) == 0
    assert f"{tmp_path / 'report.html'}: " in capsys.readouterr().out
    assert not (tmp_path / "report.md").exists()
    assert cli.main(["report", str(results), "--embed"]) == 2
    with pytest.raises(HibenchError, match="no records in"):
        write_page(tmp_path / "nothing", tmp_path)


# -- in a browser ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if PROGRAM is None:
        pytest.skip(f"needs Chromium, one of {', '.join(browser.NAMES)}; next: apt-get install chromium-headless-shell")
    one = browser.Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def opened(shown: browser.Browser, page: Path) -> Iterator[browser.Browser]:
    """The page, freshly loaded; afterwards no error, and no request that is not for a file."""
    shown.open(page)
    yield shown
    assert shown.errors == []
    assert {address.partition(":")[0] for address in shown.requests} <= {"file", "data"}


LINES = "[...document.querySelectorAll('#sweep-0-table tbody tr')].filter((row) => !row.hidden)"
CELLS = f"{LINES}.map((row) => [...row.cells].map((cell) => cell.textContent))"
COLUMN = "[...document.querySelectorAll('#sweep-0-table thead th')].findIndex((head) => head.textContent.startsWith('%s'))"


def test_sorting_by_mouse_and_keyboard(opened: browser.Browser) -> None:
    at = opened.run(COLUMN % "FD")
    head = f"#sweep-0-table thead th:nth-child({at + 1})"
    values = f"{LINES}.map((row) => row.cells[{at}].dataset.v).map((text) => text === undefined ? null : Number(text))"
    before = opened.run(values)
    opened.click(f"{head} button")
    up = opened.run(values)
    assert up == sorted(before)
    assert opened.run(f"document.querySelector('{head}').ariaSort") == "ascending"
    opened.key("Enter")                                   # the focus is on the heading
    assert opened.run(values) == up[::-1]
    opened.key("Enter")
    assert opened.run(values) == before
    latency = opened.run(COLUMN % "Latency p50")
    opened.click(f"#sweep-0-table thead th:nth-child({latency + 1}) button")
    found = opened.run(values.replace(f"cells[{at}]", f"cells[{latency}]"))
    known = [value for value in found if value is not None]
    assert known == sorted(known)
    assert found == known + [None] * (len(found) - len(known))      # what has no number stands last
    assert None in found


def test_filtering_by_words_and_menus(opened: browser.Browser) -> None:
    every = opened.run(f"{LINES}.length")
    opened.click("[data-for=sweep-0-table] input")
    opened.type("LDM 128²")
    found = opened.run(CELLS)
    assert [row[:2] for row in found] == [["128²", "ldm"]]
    assert opened.run("document.querySelector('[data-for=sweep-0-table] output').textContent") == f"1 of {every} lines"
    opened.run("(() => { const box = document.querySelector('[data-for=sweep-0-table] input'); box.value = ''; "
               "box.dispatchEvent(new Event('input')); const menu = document.querySelector('[data-for=sweep-0-table] select'); "
               "menu.value = '64²'; menu.dispatchEvent(new Event('change')); })()")
    assert {row[0] for row in opened.run(CELLS)} == {"64²"}


def test_provenance_is_one_click_or_one_key_away(opened: browser.Browser) -> None:
    opened.click("#sweep-0-table td[data-m='fd@scenes-clip']")
    id = opened.run("document.querySelector(\"#sweep-0-table td[data-m='fd@scenes-clip']\").dataset.r")
    said = opened.run("document.querySelector('#provenance[open]').textContent")
    assert f"cells/{id[:2]}/{id}/record.json" in said
    assert "weights_sha256" in opened.run("document.querySelector('#provenance details[open]').textContent")
    opened.key("Escape")
    assert opened.run("document.querySelector('#provenance[open]')") is None
    opened.run("document.querySelector('#sweep-0-table button.records').focus()")
    opened.key("Enter")
    assert opened.run("document.querySelectorAll('#provenance[open] h3').length") == 2     # speed and quality


BOXES = """[...document.querySelectorAll('#browser-grid img.own')].map((image) => ({
    width: parseFloat(image.style.width), left: parseFloat(image.style.left), native: image.naturalWidth,
    rendering: getComputedStyle(image).imageRendering }))"""


def test_samples_are_zoomed_and_moved_together(opened: browser.Browser, tmp_path: Path) -> None:
    first = opened.run(BOXES)
    assert len(first) == 3 * 2
    assert {box["native"] for box in first} == {64, 128}
    assert {box["width"] for box in first} == {224}
    opened.click("#zoom-native")
    assert all(box["width"] == box["native"] and box["rendering"] == "pixelated" for box in opened.run(BOXES))
    assert opened.run("document.getElementById('zoom-native').getAttribute('aria-pressed')") == "true"
    opened.run("document.getElementById('browser-grid').focus()")
    for key in "0++":
        opened.key(key)
    zoomed = opened.run(BOXES)
    assert {round(box["width"]) for box in zoomed} == {504}
    opened.drag("#browser-grid .pane", -60, 0)
    moved = opened.run(BOXES)
    assert {after["left"] - before["left"] for before, after in zip(zoomed, moved)} == {-60}
    opened.key("ArrowLeft")
    assert len({box["left"] for box in opened.run(BOXES)}) == 1
    assert opened.run(BOXES)[0]["left"] > moved[0]["left"]


def test_difference_to_real_shows_where_they_differ(opened: browser.Browser, tmp_path: Path) -> None:
    choose = "(() => { const menu = document.getElementById('pick-%s'); menu.value = '%s'; " \
             "menu.dispatchEvent(new Event('change')); })()"
    opened.run(choose % ("against", "real"))
    opened.run(choose % ("gain", "16"))
    opened.run("Promise.all([...document.querySelectorAll('#browser-grid img')].map((image) => image.decode()))")
    from PIL import Image

    def brightness(method: str) -> float:
        row = f"[...document.querySelectorAll('#browser-grid tbody tr')].find((row) => row.cells[0].textContent === '{method}')"
        opened.run(f"{row}.querySelector('.pane').id = 'pane-{method}'")
        x, y = opened.centre(f"#pane-{method}")
        with Image.open(opened.screenshot(tmp_path / "shot.png")) as shot:
            part = shot.convert("L").crop((int(x) - 80, int(y) - 80, int(x) + 80, int(y) + 80))
        return sum(part.tobytes()) / (160 * 160)

    assert brightness("real") == 0                        # nothing differs from itself
    assert brightness("ldm") > 20
    opened.run(choose % ("columns", "seed"))
    heads = opened.run("[...document.querySelectorAll('#browser-grid thead th')].map((head) => head.textContent)")
    assert heads == ["Method", "seed 0", "seed 1"]
    assert opened.run("document.getElementById('pick-seed').disabled") is True


def test_what_a_screen_reader_meets(opened: browser.Browser) -> None:
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "searchbox", "combobox", "checkbox", "region", "image", "img", "dialog", "navigation", "link"}
    seen = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in named:
            seen[role] = seen.get(role, 0) + 1
            assert node.get("name", {}).get("value"), node
    assert {"button", "searchbox", "combobox", "checkbox", "region", "navigation"} <= set(seen)
    assert opened.run("document.documentElement.lang") == "en"


SPOILED = """(() => { const bad = document.createElement("div"); bad.id = "bad";
    bad.innerHTML = '<img src="data:,"><button></button><input><p style="color: #999; background: #fff">faint</p>';
    document.getElementById("main").append(bad); })()"""


def test_accessibility_rules_hold_in_the_page_and_in_its_dialog(opened: browser.Browser) -> None:
    script = browser.axe()
    if script is None:
        pytest.skip("needs axe-core; next: pip install axe-core-python, which the extra 'test' names")
    opened.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert opened.audit(script) == []
    opened.run("document.documentElement.dataset.theme = 'dark'")
    opened.run("document.querySelector('#sweep-0-table button.records').click()")
    assert opened.audit(script, "document.getElementById('provenance')") == []
    opened.run("document.getElementById('provenance').close()")
    opened.run(SPOILED)
    found = " ".join(opened.audit(script, "document.getElementById('bad')"))     # the rules do see what is wrong
    for rule in ("image-alt", "button-name", "label"):
        assert f"{rule} (" in found


@pytest.mark.parametrize("look", ["light", "dark"])
def test_every_text_stands_out_from_its_background(opened: browser.Browser, look: str) -> None:
    opened.run(f"document.documentElement.dataset.theme = '{look}'")
    assert opened.faint() == []
    opened.run("document.querySelector('#sweep-0-table button.records').click()")
    assert opened.faint() == []
    opened.run("document.getElementById('provenance').close()")
    opened.run(SPOILED)
    assert [">faint<" in element for _, element in opened.faint()] == [True]


def test_dark_light_and_print(opened: browser.Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened.run(paper) == "rgb(255, 255, 255)"
    opened.click("#theme")
    assert opened.run(paper) == "rgb(22, 24, 27)"
    opened.call("Emulation.setEmulatedMedia", media="print")
    assert opened.run(paper) == "rgb(255, 255, 255)"
    assert opened.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    opened.call("Emulation.setEmulatedMedia", media="")


def test_two_thousand_records_can_be_read(shown: browser.Browser, tmp_path: Path) -> None:
    made = [records.record(f"m{number}", kind, size, steps=steps) for number in range(10) for kind in ("speed", "quality")
            for size in (64, 128, 256, 512) for steps in range(1, 26)]
    records.write(tmp_path, made)
    shown.open(write_page(tmp_path, tmp_path, plots=False)[0])
    assert shown.run(f"{LINES}.length") == 1000
    shown.click("#sweep-0-table thead th:nth-child(4) button")
    assert shown.run("document.querySelector('#sweep-0-table th[aria-sort]').ariaSort") == "ascending"
    assert shown.errors == []
