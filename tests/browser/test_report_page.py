# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of `xenpt report` in headless Chromium, at the width of a phone and of a screen."""

import os
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from xenpt import cli, reportcommand

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="needs Chromium: apt-get install chromium chromium-driver",
)
PHONE, SCREEN = 390, 1280
#: Without these, Chromium calls home when it starts; in a container it has no sandbox.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--hide-scrollbars",
)  # fmt: skip

#: Left and right end of a picture, and of each text in it, with that one's height.
BOXES = """
const ends = (element) => { const b = element.getBoundingClientRect(); return [b.left, b.right]; };
return [ends(arguments[0]), [...arguments[0].querySelectorAll("text")].map((text) =>
  [text.textContent, ...ends(text), text.getBoundingClientRect().height])];
"""
#: Cells of tables that can be seen, of each section.
CELLS = """
return [...document.querySelectorAll("section")].map((section) =>
  [...section.querySelectorAll("td")].filter((cell) => cell.checkVisibility()).length);
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with all its pictures, of fewer sizes than usual."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reportcommand, "SWEEP", ("256G", "1T"))
        patch.setattr(reportcommand, "LAYOUTS", ("64G", "12T"))
        patch.setattr(reportcommand, "HOSTS", ("1T", "16T"))
        assert cli.main(["report", "600G", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def chromium():
    options = Options()
    options.binary_location = str(BROWSER)
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    environ = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER), env=environ))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, file):
    """Open the page as a device would that is `width` CSS pixels wide."""

    def opened(width=SCREEN, *, media="screen"):
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
        chromium.get(Path(file).as_uri())
        return chromium

    yield opened
    assert chromium.get_log("browser") == []


def shown(driver, selector):
    """Elements that take up space."""
    found = driver.find_elements(By.CSS_SELECTOR, selector)
    return [element for element in found if element.is_displayed()]


def tip(driver):
    """What is said of the thing under the pointer, or ''."""
    found = driver.find_element(By.ID, "tip")
    return found.text if found.is_displayed() else ""


def point_at(driver, element):
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element(element).perform()


def slot(driver, place, number):
    """To be performed: the pointer moves to an entry of a table of the explorer."""
    [svg] = shown(driver, f"#tables [data-place={place}]")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    columns = 64
    box = svg.rect
    x = (number % columns + 0.5) / columns * box["width"] - box["width"] / 2
    y = (number // columns + 0.5) / (512 / columns) * box["height"] - box["height"] / 2
    return ActionChains(driver).move_to_element_with_offset(svg, round(x), round(y))


def headings(driver):
    return [found.text for found in shown(driver, "#tables h4")]


# --- Both widths ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_the_page_fits_and_loads_nothing_else(page, width):
    driver = page(width)
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(shown(driver, "section")) == 5


@pytest.mark.parametrize(
    "width, kind, other", [(PHONE, "narrow", "wide"), (SCREEN, "wide", "narrow")]
)
def test_each_picture_is_drawn_for_the_width(page, width, kind, other):
    driver = page(width)
    assert len(shown(driver, f".picture svg.{kind}")) == 4  # the fifth is drawn by the page itself
    assert shown(driver, f".picture svg.{other}") == []


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_no_text_of_a_picture_is_too_small_or_cut(page, width):
    driver = page(width)
    for svg in shown(driver, ".picture svg"):
        outer, texts = driver.execute_script(BOXES, svg)
        assert len(texts) > 10
        for text, left, right, height in texts:
            assert height >= 9, text
            assert outer[0] - 2 <= left <= right <= outer[1] + 2, text


def test_ids_are_unique(page):
    ids = page().execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert len(ids) > 20


# --- Controls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_the_slider_shows_the_layout_of_other_sizes(page, width):
    driver = page(width)
    slider = driver.find_element(By.CSS_SELECTOR, "#layout input")
    said = driver.find_element(By.CSS_SELECTOR, "#layout output")

    def picture():
        [svg] = shown(driver, "#layout .picture svg")
        return svg.get_attribute("aria-label")

    assert (said.text, picture()) == ("600 GiB", "Memory layout of a guest of 600 GiB")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert (said.text, picture()) == ("12 TiB", "Memory layout of a guest of 12 TiB")
    slider.send_keys(Keys.HOME)
    assert (said.text, picture()) == ("64 GiB", "Memory layout of a guest of 64 GiB")


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_the_toggles_of_the_capacity(page, width):
    """16 TiB of frame table: 2**32 pages of 32 bytes, or of 48 with BIGMEM; PV has no pools."""
    driver = page(width)

    def numbers():
        [details] = shown(driver, "#capacity details")
        rows = details.get_attribute("textContent").splitlines()
        return [row for row in rows if row.startswith("16 TiB")]

    def choose(text):
        label = f"//section[@id='capacity']//label[normalize-space()='{text}']"
        driver.find_element(By.XPATH, label).click()

    def amount(word):
        return [row for row in numbers() if word in row]

    assert "128.00" in amount("frame table")[0]
    assert len(amount("pools")) == 1
    choose("with BIGMEM")
    assert "192.00" in amount("frame table")[0]
    choose("PV")
    assert amount("pools") == []
    choose("as usual")
    assert "128.00" in amount("frame table")[0]


def test_the_numbers_open(page):
    driver = page(PHONE)
    assert driver.execute_script(CELLS) == [0] * 5
    for summary in shown(driver, "section summary"):
        summary.click()
    assert min(driver.execute_script(CELLS)) > 20


# --- Tips ----------------------------------------------------------------------------------------


def test_what_the_pointer_is_on_is_said(page):
    """1 TiB in 4 KiB pages: 1024 L1 tables, 2 of L2 and 1 of L3, each of 512 entries."""
    driver = page()
    [svg] = shown(driver, "#cleanup .picture svg")
    points = svg.find_elements(By.CSS_SELECTOR, "[data-tip^='4 KiB leaves, 1 TiB']")
    point_at(driver, points[0])
    assert tip(driver) == "4 KiB leaves, 1 TiB: 525,824"
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    assert tip(driver) == ""


def test_a_finger_need_not_hit_a_point_exactly(page):
    driver = page(PHONE)
    [svg] = shown(driver, "#cleanup .picture svg")
    point = svg.find_elements(By.CSS_SELECTOR, "[data-tip^='4 KiB leaves, 1 TiB']")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    box = driver.execute_script("return arguments[0].getBoundingClientRect()", point)
    touch = {"type": "touchStart", "touchPoints": [{"x": box["x"] + 10, "y": box["y"] - 6}]}
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert tip(driver) == "4 KiB leaves, 1 TiB: 525,824"


# --- Page tables ---------------------------------------------------------------------------------


def test_the_list_s_tables_are_shown_first(page):
    assert headings(page()) == [
        "L4, the root: 512 entries of 512 GiB",
        "L3 of L4 entry 1, from 0000008000000000: 512 entries of 1 GiB",
        "L2 of L3 entry 1, from 0000008040000000: 512 entries of 2 MiB",
    ]


def test_a_click_looks_into_another_table(page):
    """Linux's direct map begins at ffff888000000000 (Documentation/arch/x86/x86_64/mm.rst)."""
    driver = page()
    slot(driver, "before-0", 273).click().perform()
    assert headings(driver)[1:] == [
        "L3 of L4 entry 273, from ffff888000000000: 512 entries of 1 GiB"
    ]
    slot(driver, "after-1", 511).click().perform()
    last = "L2 of L3 entry 511, from ffff88ffc0000000: 512 entries of 2 MiB"
    assert headings(driver)[2:] == [last]
    slot(driver, "before-0", 2).click().perform()  # empty: nothing to look into
    assert headings(driver)[2:] == [last]


def test_entries_say_what_they_are_before_and_after(page):
    """600 GiB: of the list's second GiB, 88 x 2 MiB are mapped; 1 GiB of it is one page."""
    driver = page()
    slot(driver, "before-1", 0).perform()
    assert tip(driver) == "L3 entry 0, from 0000008000000000, 1 GiB: page, writable"
    slot(driver, "after-1", 0).perform()
    assert tip(driver) == "L3 entry 0, from 0000008000000000, 1 GiB: page, freed"
    slot(driver, "before-1", 1).perform()
    text = "L3 entry 1, from 0000008040000000, 1 GiB: page table, 17.2% mapped"  # 88 / 512
    assert tip(driver) == text
    slot(driver, "before-0", 256).perform()
    assert tip(driver) == "L4 entry 256, from ffff800000000000, 512 GiB: empty (Xen's own)"


def test_keys_move_in_a_table_and_open_the_next(page):
    driver = page()
    svg = driver.find_element(By.CSS_SELECTOR, "#tables [data-place=before-0]")
    svg.send_keys(Keys.ARROW_DOWN)
    assert tip(driver).startswith("L4 entry 65, from 0000208000000000")
    svg.send_keys(Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    svg.send_keys(*[Keys.ARROW_RIGHT] * 16, Keys.ENTER)  # 1 + 4 * 64 + 16 = 273
    assert headings(driver)[1].startswith("L3 of L4 entry 273, from ffff888000000000")
    assert driver.switch_to.active_element.get_attribute("data-place") == "before-0"


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_a_list_in_small_pages_has_one_level_more(page, width):
    driver = page(width)
    label = "//section[@id='tables']//label[contains(., '4 KiB')]"
    driver.find_element(By.XPATH, label).click()
    assert [text[:2] for text in headings(driver)] == ["L4", "L3", "L2", "L1"]
    assert len(shown(driver, "#tables .explorer svg[tabindex]")) == 8


# --- Paper ---------------------------------------------------------------------------------------


def test_on_paper_there_are_no_controls(page):
    driver = page(media="print")
    assert shown(driver, ".controls, nav, summary") == []
    assert len(shown(driver, ".picture svg.wide")) == 4
