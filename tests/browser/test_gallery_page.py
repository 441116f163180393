"""A gallery opened in a real browser: it filters, asks for nothing, is readable on a phone and in the dark, and names stay text."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser.test_report_page import luminance
from tljupyter.reports.gallery import write_gallery
from tljupyter.runs.folder import RunFolder

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'<\\script>"
ROW = {"arm": "fine-tuned", "baseline": "from scratch", "metric": "balanced_accuracy", "exploratory": False}
GAINS = {
    "helps": (0.26, 0.18, 0.33),
    "hurts": (-0.1, -0.2, -0.05),
    "no difference that matters": (0, -0.01, 0.01),
    "cannot tell": (0.05, -0.1, 0.2),
}


def picture() -> str:
    "A picture of a report."
    packed = io.BytesIO()
    Image.fromarray(np.full((300, 600, 3), 200, np.uint8)).save(packed, "png")
    return f'<img src="data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}">'


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    "Twelve finished runs of two templates, one that goes on, one that failed, one that is damaged, one that attacks."
    place = tmp_path_factory.mktemp("gallery")
    for i in range(12):
        verdict = list(GAINS)[i % 4]
        gain = dict(zip(("gain", "low", "high"), GAINS[verdict], strict=True))
        template = "few_digits" if i % 3 == 0 else "lung_xray"
        with RunFolder.create(place / f"run {i}", template, {"data_dir": f"hospital-{chr(97 + i)}"}) as run:
            row = {**ROW, **gain, "verdict": verdict, "labels_per_class": 5, "draws": 10}
            run.write("results.json", {"comparisons": [row], "margin": 0.02})
            page = f"<title>Report {i}</title><h1>Report {i}</h1>{picture()}"
            (run.path / "report.html").write_text(page)
    RunFolder.create(place / "going", "few_digits").release()
    RunFolder.create(place / "failed", HOSTILE, {"data_dir": HOSTILE}).end("failed", error=HOSTILE * 3)
    attack = place / HOSTILE.replace("/", "")
    with RunFolder.create(attack, "lung_xray") as run:
        (run.path / "report.html").write_text(
            "<title>&lt;img src=x onerror=&quot;document.title='ran'&quot;&gt;</title>"
        )
    RunFolder.create(place / "torn", "few_digits").end()
    (place / "torn" / "params.json").write_text("{")
    return write_gallery(place).page


@pytest.fixture(
    params=[(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")],
    ids=["wide-light", "wide-dark", "phone-light", "phone-dark"],
)
def opened(request, chromium, gallery):
    "The page, with all that it asked for and complained of."
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(gallery.as_uri())
    page.wait_for_timeout(300)
    yield page
    context.close()


def shown(page) -> int:
    "How many cards are seen."
    return page.locator(".runs > li:visible").count()


def test_nothing_is_asked_for_and_names_stay_text(opened, gallery):
    assert opened.title() == "Reports" and opened.complaints == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [gallery.as_uri()]
    assert opened.evaluate("document.scripts.length") == 1
    assert opened.evaluate("[...document.images].every(one => one.src.startsWith('data:image/webp'))")
    assert HOSTILE in opened.locator(".runs").inner_text() and shown(opened) == 16


def test_another_script_would_not_run(chromium, gallery):
    hostile = gallery.with_name("hostile.html")
    attack = (
        "<h2>slipped in</h2><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    )
    hostile.write_text(gallery.read_text().replace("</main>", f"{attack}</main>"))
    page = chromium.new_page()
    page.goto(hostile.as_uri())
    page.wait_for_timeout(300)
    assert page.get_by_text("slipped in").count() == 1 and page.title() == "Reports"
    assert page.get_by_label("Words").is_visible()  # our own runs
    page.close()


def test_filters_by_verdict_template_and_words(opened):
    status = opened.get_by_role("status")
    assert status.inner_text() == "16 runs"
    opened.get_by_label("Verdict").select_option(label="▲ helps (3)")
    assert shown(opened) == 3 and status.inner_text() == "3 of 16 runs"
    opened.get_by_label("Template").select_option("few_digits")
    assert shown(opened) == 1
    opened.get_by_role("button", name="Show all").click()
    opened.wait_for_function("() => document.querySelector('[role=status]').textContent === '16 runs'")
    opened.get_by_label("Words").fill("HOSPITAL-L against")
    assert shown(opened) == 1 and "Report 11" in opened.locator(".runs > li:visible").inner_text()
    opened.get_by_label("Words").fill("nothing of this kind")
    assert shown(opened) == 0 and status.inner_text() == "0 of 16 runs"
    opened.keyboard.press("Enter")  # sends nothing anywhere
    opened.get_by_label("Words").fill("damaged")
    assert shown(opened) == 1
    opened.get_by_label("Words").fill("onerror=")
    assert shown(opened) == 2 and opened.complaints == []


def test_it_is_used_by_keyboard_alone(opened):
    keys, focused = opened.keyboard, "document.activeElement"
    keys.press("Tab")
    assert opened.evaluate(f"{focused}.name") == "words"
    keys.type("hospital-d")
    assert shown(opened) == 1
    keys.press("Tab")
    assert opened.evaluate(f"{focused}.name") == "template"
    keys.press("Tab")
    assert opened.evaluate(f"{focused}.name") == "verdict"
    keys.press("Tab")
    assert opened.evaluate(f"{focused}.type") == "reset"
    keys.press("Tab")
    assert opened.evaluate(f"{focused}.textContent") == "Report 3"
    assert opened.evaluate(f"getComputedStyle({focused}.closest('li')).outlineStyle") == "solid"
    keys.press("Enter")
    opened.wait_for_url("**/run%203/report.html")
    assert opened.locator("h1").inner_text() == "Report 3"


def test_it_fits_and_text_is_not_small(opened):
    assert opened.evaluate("document.scrollingElement.scrollWidth") == opened.evaluate("innerWidth")
    inside = """[...document.querySelectorAll('.runs > li, form')].filter(one => one.scrollWidth > one.clientWidth + 1).length"""
    assert opened.evaluate(inside) == 0
    sizes = "[...document.querySelectorAll('p, label, select, input, h2')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(opened.evaluate(sizes)) >= 14


@pytest.mark.parametrize("what", ["h1", "h2 a", "label", "select", "button", ".verdict", ".gain", ".quiet", ".failed", ".damaged", "footer"])  # fmt: skip
def test_text_stands_out_from_its_paper(opened, what):
    paper, ink = opened.evaluate(
        """what => {
        const element = document.querySelector(what)
        let behind = element
        const clear = e => getComputedStyle(e).backgroundColor.replaceAll(' ', '') == 'rgba(0,0,0,0)'
        while (clear(behind) && behind.parentElement) behind = behind.parentElement
        return [getComputedStyle(behind).backgroundColor, getComputedStyle(element).color]
    }""",
        what,
    )
    dark, light = sorted((luminance(paper), luminance(ink)))
    assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{what}: {ink} on {paper}"


def test_without_a_script_every_card_is_there(chromium, gallery):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(gallery.as_uri())
    assert shown(page) == 16 and not page.locator("form").is_visible()
    context.close()
