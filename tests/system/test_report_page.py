"""The report in a real browser.

Looked at, clicked and typed at, from a file and with all requests watched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dks.results.report import write_report
from tests.support.studies import HOSTILE, keep_record, stop, study, unfinished

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

ROWS = "#table-1 .sheet:first-child tbody tr"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Looked for only where the tests must run; elsewhere they are skipped, and say why.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (CHROMIUM is None or DRIVER is None) and os.environ.get("CI") != "true",
        reason="no Chromium: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    if os.environ.get("CI") != "true":
        pytest.importorskip("selenium", reason="no selenium: pip install selenium")
    from selenium import webdriver

    assert CHROMIUM is not None, "apt-get install chromium"
    assert DRIVER is not None, "apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "hide-scrollbars",
        "force-color-profile=srgb",
    ):
        options.add_argument(f"--{argument}")
    # Whatever the page asks for elsewhere fails, and is seen in the log.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    started.set_script_timeout(20)
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(unfinished(folder), folder / "report.html")


def load(browser: Chrome, path: Path, width: int = 1400, dark: bool = False) -> None:
    """Open the page; what the logs said before is gone."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())
    browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")


@pytest.fixture
def opened(browser: Chrome, written: Path) -> Iterator[Chrome]:
    """The page, which must not have complained in the end."""
    load(browser, written)
    yield browser
    assert complaints(browser) == []


def complaints(browser: Chrome) -> list[str]:
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]


def find(browser: Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements("css selector", selector)


def one(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element("css selector", selector)


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def open_cell(browser: Chrome, text: str) -> WebElement:
    """Click the cell of the first table with this text; returns the panel."""
    cell = next(each for each in find(browser, "#table-1 td .open") if text in each.text)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", cell)
    cell.click()
    return one(browser, "dialog[open]")


def first_column(browser: Chrome) -> list[str]:
    return [each.text for each in find(browser, "#table-1 .sheet:first-child tbody tr > th")]


def heads(browser: Chrome) -> list[WebElement]:
    return find(browser, "#table-1 .sheet:first-child thead th[aria-sort]")


def test_it_loads_without_a_complaint_and_without_a_request(browser: Chrome, written: Path) -> None:
    import json

    load(browser, written)
    panel = open_cell(browser, "failed")
    assert panel.is_displayed()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [written.as_uri()]
    assert complaints(browser) == []
    assert one(browser, ".chart .test path").get_attribute("d")


def test_the_policy_stops_a_script_that_came_from_elsewhere(browser: Chrome, written: Path) -> None:
    load(browser, written)
    browser.execute_script(
        "const added = document.createElement('script'); added.textContent = 'window.broken = "
        "1'; document.body.append(added);"
        "const image = document.createElement('img'); image.src = 'https://example.com/x.png'; "
        "document.body.append(image)"
    )
    assert browser.execute_script("return window.broken") is None
    told = complaints(browser)
    assert len(told) >= 2
    assert all("Content Security Policy" in each for each in told)


def test_hostile_labels_and_errors_are_shown_and_do_nothing(
    browser: Chrome, tmp_path: Path
) -> None:
    hostile = study(designs=(HOSTILE,), seeds=(1, 2), folder=tmp_path)
    failed = stop(hostile, HOSTILE, "dks", 1, "failed", 3)
    keep_record(Path(failed["place"]), failed, {"type": "ValueError", "message": HOSTILE})
    load(browser, write_report(hostile, tmp_path / "hostile.html"))
    panel = open_cell(browser, "1 failed")
    shown = " ".join(HOSTILE.split())
    assert shown in " ".join(
        (panel.find_element("css selector", "h2").get_property("textContent") or "").split()
    )
    assert f"ValueError: {shown}" in " ".join(
        (panel.find_element("css selector", "pre").get_property("textContent") or "").split()
    )
    assert find(browser, "img") == []
    assert len(find(browser, "script")) == 2
    # an alert would have stopped the commands above, a request would be told here
    assert complaints(browser) == []


def test_a_click_on_a_head_sorts_by_it_up_then_down_then_as_it_was(opened: Chrome) -> None:
    from selenium.webdriver import Keys

    before = first_column(opened)
    assert before == ["ap_2fc", "ap_conv_2fc", "narrow", "shallow", "ours"]
    head = heads(opened)[1]  # the errors of DS
    values = (
        f"return [...document.querySelectorAll({ROWS!r})].map((row) => "
        f"Number(row.cells[1].dataset.value))"
    )
    head.find_element("tag name", "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert opened.execute_script(values) == sorted(opened.execute_script(values))
    assert first_column(opened) != before
    press(opened, Keys.ENTER)  # the head has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert opened.execute_script(values) == sorted(opened.execute_script(values), reverse=True)
    press(opened, Keys.SPACE)
    assert head.get_attribute("aria-sort") == "none"
    assert first_column(opened) == before
    heads(opened)[0].find_element("tag name", "button").click()  # the labels, as words
    assert first_column(opened) == sorted(before)
    assert [each.get_attribute("aria-sort") for each in heads(opened)].count("ascending") == 1


def test_what_is_missing_stays_behind_whichever_way_one_sorts(opened: Chrome) -> None:
    classes = opened.execute_script(
        f"return [...document.querySelectorAll({ROWS!r})][0].innerHTML"
    ).split("<td ")[1:]
    # the second group of columns
    at = max(number for number, each in enumerate(classes) if " start" in each.split(">")[0])
    head = heads(opened)[1 + at]  # the errors of DKS
    for order in ("ascending", "descending"):
        opened.execute_script("arguments[0].querySelector('button').click()", head)
        assert head.get_attribute("aria-sort") == order
        assert first_column(opened)[-1] == "shallow"


def test_a_click_on_a_cell_opens_its_runs_and_escape_closes_them(opened: Chrome) -> None:
    from selenium.webdriver import Keys

    panel = open_cell(opened, "failed")
    assert panel.find_element("css selector", "h2").text == "ap_conv_2fc dks"
    lines = [each.text.split() for each in panel.find_elements("css selector", "tbody tr")][:5]
    assert [line[:2] for line in lines] == [
        [str(seed), "failed" if seed == 2 else "done"] for seed in range(1, 6)
    ]
    assert [len(line) for line in lines] == [8, 5, 8, 8, 8]
    for text in (
        "OutOfMemoryError: CUDA out of memory",
        "8ea1394f87",
        "NVIDIA H100",
        "1.7 PFLOP",
        "4,183",
        "1.8 GiB",
        "aux_design.kind",
    ):
        assert text in panel.text, text
    assert "recipe.lr" not in panel.text
    panel.find_element("css selector", "summary").click()
    assert "recipe.lr" in panel.text
    press(opened, Keys.ESCAPE)
    assert find(opened, "dialog[open]") == []
    assert "failed" in opened.switch_to.active_element.text  # where one was before


def test_the_keyboard_alone_opens_and_closes_a_cell(opened: Chrome) -> None:
    from selenium.webdriver import Keys

    cell = find(opened, "#table-1 td .open")[0]
    opened.execute_script("arguments[0].focus()", cell)
    press(opened, Keys.ENTER)
    assert one(opened, "dialog[open] h2").text == "ap_2fc ds"
    press(opened, Keys.ENTER)  # the first thing in the panel closes it
    assert find(opened, "dialog[open]") == []


def test_a_cell_that_nobody_began_says_so(opened: Chrome) -> None:
    panel = open_cell(opened, "5 missing")
    assert panel.text.count("missing") == 5
    assert "Not known before a run has begun." in panel.text
    panel.find_element("css selector", ".close").click()
    assert find(opened, "dialog[open]") == []


def displayed(browser: Chrome, selector: str) -> int:
    return sum(each.is_displayed() for each in find(browser, f".chart {selector}"))


def test_the_legend_and_the_switches_hide_lines(opened: Chrome) -> None:
    from selenium.webdriver import Keys

    parts = ("test", "train", "band", "runs")
    assert [displayed(opened, f".{part}") for part in parts] == [17, 17, 28, 0]
    key = one(opened, ".key")
    assert (key.get_attribute("aria-label"), key.get_attribute("aria-pressed")) == (
        "baseline",
        "true",
    )
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", key)
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert displayed(opened, ".test") == 12  # it was in each of the five panels
    press(opened, Keys.ENTER)  # the key has the focus
    assert displayed(opened, ".test") == 17
    train, band, runs = find(opened, ".controls input")
    for switch in (train, band, runs):
        opened.execute_script("arguments[0].click()", switch)
    assert [displayed(opened, f".{part}") for part in parts[:3]] == [17, 0, 0]
    assert displayed(opened, ".runs") > 17


def test_the_pointer_and_the_arrow_keys_read_the_values_of_an_epoch(
    opened: Chrome, tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains, Keys

    chart, tip = one(opened, ".chart"), one(opened, ".chart .tip")
    assert not tip.is_displayed()
    svg = one(opened, ".chart svg")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    left = opened.execute_script(
        "const [left, top, width, height] = contents.figures[0].panels[0].box;"
        "const svg = arguments[0], box = svg.getBoundingClientRect();"
        "const at = new DOMPoint(left + 0.97 * width, top + height / 2)"
        ".matrixTransform(svg.getScreenCTM());"
        "return [at.x - box.x - box.width / 2, at.y - box.y - box.height / 2].map(Math.round)",
        svg,
    )
    ActionChains(opened).move_to_element_with_offset(svg, *left).perform()
    assert tip.is_displayed()
    assert tip.text.startswith("epoch 40")
    ends = [
        float(run["final/test/top1_error"])
        for run in unfinished(tmp_path).source.runs_by_id.values()
        if run["method"] == "baseline"
    ]
    (line,) = [each.split() for each in tip.text.splitlines() if each.startswith("baseline")]
    assert float(line[1]) == pytest.approx(sum(ends) / 5, abs=0.011)
    ActionChains(opened).move_to_element_with_offset(svg, left[0] - 60, left[1]).perform()
    assert tip.text.split()[1] not in ("1", "40")
    opened.execute_script("arguments[0].focus()", chart)
    press(opened, Keys.HOME)
    assert tip.text.startswith("epoch 1 ")
    press(opened, Keys.ARROW_RIGHT)
    assert tip.text.startswith("epoch 2 ")


def test_points_tell_their_values(opened: Chrome) -> None:
    titles = [each.get_property("textContent") for each in find(opened, ".chart svg title")]
    assert "baseline: 28.49 ± 0.30 %" in titles


def test_the_command_is_copied(opened: Chrome) -> None:
    opened.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    button = one(opened, ".copy")
    button.click()
    opened.execute_async_script("setTimeout(arguments[0], 200)")
    assert button.text == "Copied"
    copied = opened.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )
    assert copied == "dks sweep run table3 data.root=data"


@pytest.mark.parametrize("width", [1400, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_its_window_and_can_be_read(
    browser: Chrome, written: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """Nothing is wider than the window but what scrolls in its own box, and text stands out from
    its ground.
    """
    load(browser, written, width, dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    contrasts = browser.execute_script(
        """
        const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
        const bright = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
          .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
          .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
        const ground = (element) => {
          for (let each = element; each; each = each.parentElement) {
            const colour = numbers(getComputedStyle(each).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
          }
        };
        const found = [];
        const texts = "h1, h2, p, td, td .open, th, dd, dt, .state, .toc a, .note, figcaption";
        for (const element of document.querySelectorAll(texts)) {
          const [a, b] = [bright(numbers(getComputedStyle(element).color)), bright(ground(element))];
          found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent]);
        }
        return found;
        """  # noqa: E501
    )
    assert len(contrasts) > 100
    assert [each for each in contrasts if each[0] < 4.5] == []
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert complaints(browser) == []


def test_hundreds_of_runs_open_at_once(browser: Chrome, tmp_path: Path) -> None:
    large = study(designs=[f"design{number}" for number in range(25)], epochs=200)
    load(browser, write_report(large, tmp_path / "large.html"))
    took = browser.execute_script(
        "return performance.getEntriesByType('navigation')[0].domComplete"
    )
    assert took < 10_000, took
    assert len(find(browser, ".chart .test")) == 75
    assert complaints(browser) == []


def test_the_printed_page_has_the_tables_and_none_of_the_buttons(
    browser: Chrome, written: Path
) -> None:
    load(browser, written)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not one(browser, ".copy").is_displayed()
        assert not one(browser, ".controls").is_displayed()
        assert one(browser, "#table-1 td .open").is_displayed()
        assert one(browser, ".chart svg").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
