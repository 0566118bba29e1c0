"""The page in a real browser: slider, keyboard, no network, a silent console, accessible, and without scripts."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from report import results

from fewstep import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="there is no playwright: pip install playwright"),
]
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results.dial(folder / "dial", asked=EVIL)
    results.ledger(folder / "ledger", name=EVIL)
    results.settling(folder / "settle")
    results.run(folder / "run")
    results.texts(folder / "text", prompt=EVIL)
    results.changes(folder / "changes", prompt=EVIL)
    return write_report([folder], folder / "page.html")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


def shown(page) -> dict[str, str]:
    """The first picture of each model that is to be seen."""
    cards = page.locator(".dial .card:visible")
    return {
        card.get_attribute("data-model"): card.locator("img").first.get_attribute("src")
        for card in map(cards.nth, range(cards.count()))
    }


def test_the_slider_changes_pictures_by_mouse_and_keyboard_and_nothing_leaves_the_page(browser, page_file) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    slider, status = page.locator(".dial input[type=range]"), page.locator(".dial [role=status]")
    at_four = shown(page)
    assert slider.get_attribute("aria-valuetext") == "4 network calls"
    assert "teacher: 10.0 ± 0.5 at 4 network calls; student: 2.00 ± 0.50 at 4 network calls." in status.inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    at_two = shown(page)
    assert slider.get_attribute("aria-valuetext") == "2 network calls"
    assert at_two["student"] != at_four["student"]
    assert "nearest number below" in page.locator(".card[data-model=teacher]:visible .instead").inner_text()
    assert page.locator(".card:visible .instead:visible").count() == 1
    page.keyboard.press("Home")
    assert shown(page)["student"] not in (at_two["student"], at_four["student"])
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] - 3, "y": box["height"] / 2})  # once it stands still
    assert slider.get_attribute("aria-valuetext") == "35 network calls"
    assert shown(page)["student"] == at_four["student"]  # its most
    assert shown(page)["teacher"] not in at_four.values()
    steps = page.locator(".decoding input[type=range]")
    steps.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".decoding .tokens .later").all_inner_texts() == ["is\n2"]  # decided at the second step
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.title().startswith("fewstep report")  # what the results say did not run
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_is_accessible_and_fits_its_window(browser, page_file, width, scheme) -> None:
    import axe_playwright_python

    axe = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found["violations"]] == []
    assert len(found["passes"]) > 20  # it looked
    context.close()


def test_without_scripts_everything_is_shown(browser, page_file) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".dial .card:visible").count() == 6
    assert page.locator("input:visible").count() == 0
    context.close()
