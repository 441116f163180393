"""A report opened in a real browser: nothing runs, nothing is asked for, it is readable on a phone and in the dark."""

import re
from pathlib import Path

import pytest

from tljupyter.reports.execute import run_report

pytestmark = pytest.mark.browser

TINY = Path(__file__).parent.parent / "templates" / "tiny.ipynb"
HOSTILE = (
    "normal<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
    "<svg onload=\"document.title='ran'\"><a href=\"javascript:document.title='ran'\">a</a></svg>"
    '<img src="https://example.org/pixel.png"><link rel=stylesheet href="https://example.org/x.css">'
    "<iframe src=https://example.org></iframe><p style='background:url(https://example.org/p)'>styled</p>"
)


@pytest.fixture(scope="module")
def report(chromium, tmp_path_factory) -> Path:
    "The page of a run whose class names are an attack."
    made = run_report(TINY, {"class_name": HOSTILE}, tmp_path_factory.mktemp("page") / "run")
    assert made.ok and made.html is not None
    return made.html


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["wide-light", "phone-dark"])
def opened(request, chromium, report):
    "The page, with all that it asked for and complained of."
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(report.as_uri())
    page.wait_for_timeout(300)
    yield page
    context.close()


def test_nothing_runs_and_nothing_is_asked_for(opened, report):
    assert opened.title() == "Tiny"
    assert [url for url in opened.asked if not url.startswith("data:")] == [report.as_uri()]
    assert opened.complaints == []
    assert (
        opened.evaluate(
            "document.scripts.length + document.querySelectorAll('iframe,link,object,embed').length"
        )
        == 0
    )


def test_even_a_script_that_slipped_in_would_not_run(chromium, report, tmp_path):
    hostile = tmp_path / "hostile.html"
    attack = "<h2>slipped in</h2><script>document.title='ran'</script><img src='https://example.org/p.png'>"
    hostile.write_text(report.read_text().replace("</main>", attack + "</main>"))
    page = chromium.new_page()
    refused = []
    page.on("requestfailed", lambda request: refused.append(request.failure))
    page.goto(hostile.as_uri())
    page.wait_for_timeout(300)
    assert page.get_by_text("slipped in").count() == 1 and page.title() == "Tiny"
    assert set(refused) <= {"csp"}
    page.close()


def test_it_fits_and_wide_tables_scroll_in_their_box(opened):
    assert opened.evaluate("document.scrollingElement.scrollWidth") == opened.evaluate("innerWidth")
    boxes = opened.evaluate(
        "[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth, b.clientWidth])"
    )
    assert max(inside / outside for inside, outside in boxes) > 1 or opened.evaluate("innerWidth") > 1000
    sizes = opened.evaluate(
        "[...document.querySelectorAll('p, td, li')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 14


def test_the_verdict_is_seen_without_scrolling(opened):
    verdict = opened.get_by_label("Verdict")
    assert "Transfer helps" in verdict.inner_text()
    box = verdict.bounding_box()
    assert box["y"] + box["height"] < 400 and opened.locator("h1").bounding_box()["y"] < box["y"]


def luminance(colour: str) -> float:
    "Relative luminance of `rgb(r, g, b)`, by WCAG 2."
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("what", ["h1", "p", "td", ".verdict", "blockquote", "summary", "footer", "td code"])
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


def test_dark_is_dark(opened):
    paper = luminance(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.1) == opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def test_it_can_be_read_aloud_and_by_keyboard(opened):
    levels = [
        int(level[1])
        for level in opened.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName)")
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert opened.evaluate("[...document.images].every(i => i.alt.length > 0)")
    assert opened.evaluate("document.documentElement.lang") == "en"
    code = opened.locator("details.code").first
    code.locator("summary").focus()
    opened.keyboard.press("Enter")
    assert code.locator("pre").is_visible()
