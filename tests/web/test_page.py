"""The page of examples/web in headless Chromium: digits are drawn by mouse events, answers are read.

`make web-test` builds the page and runs this; the ordinary pytest run does not.
"""

import contextlib
import math
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from nsn import runtime

ROOT = Path(__file__).parents[2]
WEB = ROOT / "build" / "web"
NETWORK = WEB / "network.nsnrt"

sys.path.insert(0, str(ROOT / "examples" / "web"))
import serve

#: What stands in the place of an answer.
NO_ANSWER = "\N{EN DASH}"

#: What the page asks for first, FIRST_BYTES of network.js.
FIRST = "bytes=0-8191"


# ---- the server and the browser ------------------------------------------------------------------
@dataclass
class Site:
    """The page, served by serve.py; what was asked for, and what a test wants of the server."""

    folder: Path
    url: str = ""
    #: The ranges of files of networks, in order; None for a whole one.
    ranges: list[str | None] = field(default_factory=list)
    #: Ranges from here on are not answered before `go`.
    hold_from: float = math.inf
    go: threading.Event = field(default_factory=threading.Event)
    knows_ranges: bool = True
    #: Whether ETags say of themselves that they tell no ranges apart.
    is_weak: bool = False


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site(folder)

    class Handler(serve.Handler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            if ".nsnrt" in self.path:
                wanted = self.headers.get("Range")
                site.ranges.append(wanted)
                if wanted and int(re.findall(r"\d+", wanted)[0]) >= site.hold_from:
                    assert site.go.wait(60)
                if not site.knows_ranges:
                    del self.headers["Range"]
            super().do_GET()

        def send_header(self, keyword: str, value: str) -> None:
            # The browser's cache would ask with ranges and tags of its own.
            if keyword == "ETag" and site.is_weak:
                value = f"W/{value}"
            super().send_header(keyword, "no-store" if keyword == "Cache-Control" else value)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield site
        finally:
            site.go.set()
            server.shutdown()


@pytest.fixture
def site() -> Iterator[Site]:
    with served(WEB) as result:
        yield result


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # Root may not use the sandbox, and containers have a small /dev/shm.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1100,1200")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    with webdriver.Chrome(options, service) as driver:
        yield driver


class Page:
    """What a person does on the page, and sees."""

    def __init__(self, browser: webdriver.Chrome, site: Site, file: str = "", ends: str = "ready"):
        self.browser = browser
        browser.get_log("browser")  # of pages before
        browser.get(site.url + (f"?file={file}" if file else ""))
        if ends:
            self.wait(lambda: self.state != "loading", "the page still loads")
            assert self.state == ends, f"{self.message} {self.log}"

    def wait(self, holds: Callable[[], object], what: str) -> None:
        WebDriverWait(self.browser, 30, 0.05).until(lambda _: holds(), what)

    def one(self, css: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    @property
    def state(self) -> str | None:
        return self.one("body").get_attribute("data-state")

    @property
    def message(self) -> str:
        return self.one("#message").text

    @property
    def log(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    @property
    def arrived(self) -> list[int]:
        """How many bytes are there, of how many, in how much memory."""
        numbers = re.findall(r"[\d,]+(?= )", self.one("#arrived").text)
        return [int(each.replace(",", "")) for each in numbers if each != ","]

    def rows(self) -> dict[str, dict[str, str]]:
        """Of each sub-network what its row says."""
        keys = ("result", "confidence", "latency", "bytes", "here")
        return {
            row.get_attribute("data-name") or "": {
                key: row.find_element(By.CLASS_NAME, key).text for key in keys
            }
            for row in self.browser.find_elements(By.CSS_SELECTOR, "#rows tr")
        }

    def answers(self) -> dict[str, str]:
        return {name: row["result"] for name, row in self.rows().items()}

    def draw(self, *strokes: list[tuple[float, float]]) -> None:
        """By mouse; points from the middle of the paper on, in pixels."""
        paper = self.one("#paper")
        for first, *others in strokes:
            mouse = ActionChains(self.browser, duration=0)
            mouse.move_to_element_with_offset(paper, *map(round, first)).click_and_hold()
            for point in others:
                mouse.move_to_element_with_offset(paper, *map(round, point))
            mouse.release().perform()

    def expect(self, digit: str, names: list[str]) -> None:
        self.wait(
            lambda: all(self.answers()[name] == digit for name in names),
            f"{names} do not all say {digit}",
        )


def ring(width: float, height: float) -> list[tuple[float, float]]:
    angles = [math.pi * (i / 12 - 0.5) for i in range(25)]
    return [(width * math.cos(a), height * math.sin(a)) for a in angles]


ONE = [(8.0, -90.0), (0.0, 0.0), (-8.0, 90.0)]
ZERO = ring(60, 90)
SEVEN = [(-60.0, -85.0), (0.0, -85.0), (60.0, -85.0), (30.0, 0.0), (-5.0, 90.0)]
FOUR = ([(10.0, -90.0), (-60.0, 30.0), (60.0, 30.0)], [(25.0, -30.0), (25.0, 95.0)])


@pytest.fixture(scope="module")
def model() -> runtime.Model:
    return runtime.Model(NETWORK)


@pytest.fixture(scope="module")
def by_size(model: runtime.Model) -> list[str]:
    """Names, the smallest first."""
    return sorted(model.subnetworks, key=lambda name: model.subnetworks[name].file_bytes)


# ---- what the page does --------------------------------------------------------------------------
def test_all_answer_what_is_drawn(
    browser: webdriver.Chrome, site: Site, by_size: list[str]
) -> None:
    page = Page(browser, site)
    assert set(page.answers().values()) == {NO_ANSWER}
    for digit, strokes in {"1": [ONE], "0": [ZERO], "7": [SEVEN], "4": FOUR}.items():
        page.draw(*strokes)
        page.expect(digit, by_size)
        assert page.one("#answer").text == digit
        assert all(float(row["confidence"].split()[0]) > 50 for row in page.rows().values())
        page.one("#clear").click()
        page.wait(lambda: set(page.answers().values()) == {NO_ANSWER}, "Clear clears no answers")
    # While it is drawn, and not only when the mouse is let go.
    mouse = ActionChains(browser, duration=0).move_to_element_with_offset(
        page.one("#paper"), 8, -90
    )
    mouse.click_and_hold().move_by_offset(-8, 90).move_by_offset(-8, 90).perform()
    page.expect("1", by_size)
    ActionChains(browser).release().perform()
    assert page.log == []


def test_slider_chooses_who_answers(
    browser: webdriver.Chrome, site: Site, by_size: list[str]
) -> None:
    page = Page(browser, site)
    page.draw(ZERO)
    page.expect("0", by_size)
    slider = page.one("#slider")
    for name in by_size:
        assert page.one("#chosen").text == name == slider.get_attribute("aria-valuetext")
        assert page.one("#rows .chosen").get_attribute("data-name") == name
        # The chart is of that one.
        share = page.one("#classes li.most").get_attribute("title")
        assert share == f"0: {page.rows()[name]['confidence']}"
        slider.send_keys(Keys.ARROW_RIGHT)
    page.one(f"#rows tr[data-name={by_size[0]}]").click()
    assert page.one("#chosen").text == by_size[0]


def test_its_numbers_are_those_of_the_native_runtime(
    browser: webdriver.Chrome, site: Site, model: runtime.Model
) -> None:
    page = Page(browser, site)
    page.draw(*FOUR)
    page.expect("4", list(model.subnetworks))
    seen = browser.execute_script(
        "return [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    session = runtime.Session(model)
    for name, row in page.rows().items():
        x = (torch.tensor(seen[::4], dtype=torch.float32) / 255).reshape(
            1, *model.subnetworks[name].input_shape
        )
        share = 100 * session.run(name, x).softmax(1).max().item()
        assert abs(float(row["confidence"].split()[0]) - share) < 0.06, name


def test_bytes_and_times_are_true(
    browser: webdriver.Chrome, site: Site, model: runtime.Model
) -> None:
    page = Page(browser, site)
    for name, row in page.rows().items():
        assert row["bytes"] == f"{model.subnetworks[name].file_bytes:,}"
        assert row["here"] == "all"
    size = NETWORK.stat().st_size
    there, whole, memory = page.arrived
    assert there == whole == size
    # Weights lie there once: one copy more would be as long as the file.
    assert size < memory < size + (2 << 20)
    page.wait(lambda: all("µs" in row["latency"] for row in page.rows().values()), "no latencies")
    times = {name: float(row["latency"].split()[0]) for name, row in page.rows().items()}
    assert all(0 < time < 50_000 for time in times.values())


# ---- the file in parts ---------------------------------------------------------------------------
def test_the_small_one_answers_before_the_rest_has_arrived(
    browser: webdriver.Chrome, site: Site, model: runtime.Model, by_size: list[str]
) -> None:
    small, *others = by_size
    ends = [model.subnetworks[name].file_bytes for name in by_size]
    site.hold_from = ends[0]
    page = Page(browser, site, ends="")
    page.wait(lambda: page.rows().get(small, {}).get("here") == "all", "the small one never came")
    page.draw(SEVEN)
    page.expect("7", [small])
    assert page.state == "loading"
    assert all(page.answers()[name] == NO_ANSWER for name in others)
    assert page.arrived[:2] == [ends[0], NETWORK.stat().st_size]
    begins = [8192, *ends]
    asked = [FIRST, *(f"bytes={a}-{b - 1}" for a, b in zip(begins, ends, strict=False))]
    assert site.ranges == asked[:3]  # the last of which waits

    # The rest comes, and all answer what stands there, without another stroke.
    site.go.set()
    page.expect("7", by_size)
    page.wait(lambda: page.state == "ready", "the page still loads")
    assert site.ranges == asked
    assert page.log == []


def test_a_server_without_ranges_does_too(
    browser: webdriver.Chrome, site: Site, by_size: list[str]
) -> None:
    site.knows_ranges = False
    page = Page(browser, site)
    page.draw(ONE)
    page.expect("1", by_size)
    assert site.ranges == [FIRST]


# ---- what is wrong -------------------------------------------------------------------------------
def words(content: bytes, changes: dict[int, int]) -> bytes:
    """The same with other words at these places."""
    result = bytearray(content)
    for at, value in changes.items():
        struct.pack_into("<q", result, at, value)
    return bytes(result)


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda _: b"no network at all, but as long as the first words of one",
             "its first bytes are others. Write it with `nsn export"),
    "empty": (lambda _: b"", "'wrong.nsnrt' ends after 0 bytes."),
    "short": (lambda b: b[:20], "ends after 20 bytes, in its header. Append"),
    "version": (lambda b: words(b, {8: 9}), "it has version 9, but this program reads"),
    "header": (lambda b: b[:2000], "ends after 2000 bytes, and not after 1"),
    "huge": (lambda b: words(b, {24: 1 << 45}), "There is no memory for 35184372088832 bytes"),
    "larger": (lambda b: words(b, {24: 3 << 29}), ""),
    "counts": (lambda b: words(b, {32: 1 << 40}), "its header names more than it holds"),
    "sizes": (lambda b: words(b, {16: -1}), "its sizes are out of range"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_says_what_is_wrong_with_a_file(
    browser: webdriver.Chrome, tmp_path: Path, kind: str, by_size: list[str]
) -> None:
    make, says = WRONG[kind]
    folder = tmp_path / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("digits"))
    (folder / "wrong.nsnrt").write_bytes(make(NETWORK.read_bytes()))
    with served(folder) as site:
        if says == "":  # it says that it is longer than what it needs
            page = Page(browser, site, "wrong.nsnrt")
            page.draw(ONE)
            page.expect("1", by_size)
            return
        page = Page(browser, site, "wrong.nsnrt", ends="error")
        assert says in page.message
        assert page.one("#slider").get_attribute("disabled") is not None
        page.draw(ONE)  # which nobody answers, and nothing breaks
        assert not [each for each in page.log if "Uncaught" in each]


def test_says_that_there_is_no_file(browser: webdriver.Chrome, site: Site) -> None:
    page = Page(browser, site, "absent.nsnrt", ends="error")
    assert "'absent.nsnrt' cannot be fetched: the server says 404" in page.message


def test_of_a_file_that_is_cut_those_that_are_there_answer(
    browser: webdriver.Chrome, tmp_path: Path, model: runtime.Model, by_size: list[str]
) -> None:
    folder = tmp_path / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("digits"))
    there, cut = by_size[:2], model.subnetworks[by_size[2]].file_bytes - 1
    (folder / "network.nsnrt").write_bytes(NETWORK.read_bytes()[:cut])
    with served(folder) as site:
        page = Page(browser, site, ends="error")
        assert f"ends after {cut} bytes, and not after {NETWORK.stat().st_size}." in page.message
        page.draw(ZERO)
        page.expect("0", there)
        assert all(page.answers()[name] == NO_ANSWER for name in by_size[2:])


def test_says_that_a_file_was_replaced_meanwhile(
    browser: webdriver.Chrome, tmp_path: Path, model: runtime.Model, by_size: list[str]
) -> None:
    folder = tmp_path / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("digits"))
    with served(folder) as site:
        site.hold_from = model.subnetworks[by_size[0]].file_bytes
        page = Page(browser, site, ends="")
        page.wait(lambda: len(site.ranges) == 3, "the rest is not asked for")
        (folder / "network.nsnrt").write_bytes(NETWORK.read_bytes() + b"\0")
        site.go.set()
        page.wait(lambda: page.state == "error", "nothing was said")
        assert "has changed on its server" in page.message


# ---- what it is made of --------------------------------------------------------------------------
@pytest.mark.parametrize("is_weak", [False, True])
def test_loads_at_once_follow_each_other(
    browser: webdriver.Chrome, site: Site, is_weak: bool
) -> None:
    """And a weak ETag is not sent back, which servers would answer with the whole file."""
    site.is_weak = is_weak
    Page(browser, site)
    found = browser.execute_async_script(
        """
        const done = arguments[0];
        (async () => {
          const { Network } = await import("./network.js");
          const input = Float32Array.from({ length: 784 }, (_, i) => (i % 29) / 29);
          const outputs = (network) => network.subnetworks.map((each) => [...network.run(each, input)]);
          const one = await Network.open("network.nsnrt");
          for (const each of one.bySize) await one.load(each);
          const all = await Network.open("network.nsnrt");
          await Promise.all(all.subnetworks.map((each) => all.load(each)));
          return [outputs(one), outputs(all)];
        })().then(done, (error) => done([String(error), null]));
        """
    )
    assert found[0] == found[1], found[0]


def test_says_what_is_wrong_with_a_run(browser: webdriver.Chrome, site: Site) -> None:
    Page(browser, site)
    found = browser.execute_async_script(
        """
        const done = arguments[0];
        (async () => {
          const { Network } = await import("./network.js");
          const network = await Network.open("network.nsnrt");
          const [small] = network.bySize;
          const said = [];
          const refuse = (run) => { try { run(); said.push("nothing"); } catch (error) { said.push(error.message); } };
          refuse(() => network.run(small, new Float32Array(784)));
          await network.load(small);
          refuse(() => network.run(small, new Float32Array(5)));
          refuse(() => network.run(undefined, new Float32Array(784)));
          refuse(() => network.run({ ...small }, new Float32Array(784)));
          refuse(() => network.run(small, new Float32Array(784)));
          return [...said, small.name];
        })().then(done, (error) => done([String(error)]));
        """
    )
    name = found[-1]
    other = "run takes one of network.subnetworks, but is given"
    assert found[:-1] == [
        f"'{name}' is not there yet. Await network.load of it first.",
        f"'{name}' takes 784 numbers, but is given 5. Give one sample.",
        f"{other} undefined.",
        f"{other} [object Object].",
        "nothing",
    ]


def test_kernels_use_vectors() -> None:
    done = subprocess.run(
        ["wasm-dis", WEB / "nsn.wasm"], capture_output=True, text=True, check=True
    )
    for instruction in ("f32x4.mul", "f32x4.add", "v128.load"):
        assert done.stdout.count(f"({instruction}") > 100, instruction


def test_it_is_small() -> None:
    assert (WEB / "nsn.wasm").stat().st_size < 300_000
    assert sum(file.stat().st_size for file in WEB.glob("*.*s")) < 60_000


def test_nothing_comes_from_elsewhere() -> None:
    for file in [*WEB.glob("*.html"), *WEB.glob("*.css"), *(ROOT / "examples/web").glob("*.js")]:
        assert not re.search(r"https?://(?!localhost)", file.read_text()), file.name


@pytest.mark.parametrize(
    ("header", "part"),
    {
        "bytes=0-9": (0, 10),
        "bytes=90-": (90, 100),
        "bytes=90-1000": (90, 100),
        "bytes=-10": (90, 100),
        "bytes=-1000": (0, 100),
        "bytes=9-3": None,
        "bytes=-": None,
        "bytes=0-1,4-5": None,
        "lines=0-9": None,
        "": None,
    }.items(),
)  # fmt: skip
def test_serve_finds_the_part(header: str, part: tuple[int, int] | None) -> None:
    assert serve.part_of(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_serve_refuses_what_is_not_there(header: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        serve.part_of(header, 100)
