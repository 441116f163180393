"""The result of a run in a real JupyterLab: cells by mouse and by keyboard, runs beside each other, and a report with the same numbers."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from test_live import until, write_digits

from tljupyter.runs.folder import RunFolder
from tljupyter.runs.live import LiveRun, start
from tljupyter.runs.request import Request
from tljupyter.settings import Settings

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit=1'>"
SETUP = """
from pathlib import Path
from tljupyter.settings import load_settings
from tljupyter.widgets.result import Result
settings = load_settings({"device": "cpu", "threads": 1, "runs_dir": Path("results").absolute()})
"""


@pytest.fixture(scope="module")
def settings(lab) -> Settings:
    "Runs lie below the folder of the notebook, so that the lab can serve their pages."
    return Settings(
        cache_dir=lab.runs.parent / "cache", runs_dir=lab.folder / "results", device="cpu", threads=1
    )


@pytest.fixture(scope="module")
def asked(lab) -> Request:
    "Three classes of digits, one under a name that is an attack."
    folder = write_digits(lab.folder / "three digits", 40, codes=(1, 7, 8))
    (folder / "digit 1").rename(folder / HOSTILE)
    return Request(str(folder), "digits_convnet", "random", labels_per_class=5, epochs=2)


@pytest.fixture(scope="module")
def page(lab, settings, asked):
    "A notebook with the result of the first of three runs, beside the second."
    for name, changes in {"first": {}, "longer": {"epochs": 8}, "other split": {"seed": 1}}.items():
        start(
            replace(asked, **changes),
            settings.runs_dir / name,
            where="thread",
            blocking=True,
            settings=settings,
        )
    cells = SETUP, 'result = Result("first", "longer", settings=settings)\nresult'
    with lab.open(lab.write("result", *cells)) as opened:
        opened.run_all()
        opened.view.get_by_role("region", name="Result of first").wait_for(timeout=60_000)
        yield opened


@pytest.fixture
def panel(page):
    "The result as it was at first."
    page.ask('[result.close(), result.choose(arm="linear probe", metric="balanced_accuracy")] and None')
    return page.view.get_by_role("region", name="Result of first")


def cell(panel, true: str, predicted: str):
    return panel.get_by_role("button", name=f"{true}, predicted {predicted}:")


def images(panel) -> list[str]:
    "Names of the images of the open cell, once all of them are drawn."
    frames = panel.get_by_role("region", name="Images of a cell").locator("li")
    frames.first.wait_for()
    panel.page.wait_for_function(
        "() => [...document.querySelectorAll('.tl-rs-cell .tl-shot')].every(f => f.querySelector('img')?.naturalWidth > 0)"
    )
    return [frames.nth(at).get_attribute("title") for at in range(frames.count())]


def test_the_verdict_stands_first_with_its_doubt(page, panel):
    verdict = panel.get_by_role("region", name="Verdict")
    text = verdict.inner_text()
    assert "◆\nCannot tell at 5 labels a class." in text and "One draw cannot show" in text
    gain = page.ask("result._verdict()['gain']")
    assert gain["points"] in text and f"{gain['interval']} {gain['who']}" in text
    boxes = [part.bounding_box()["y"] for part in (verdict, panel.get_by_role("table", name="Every arm"))]
    assert boxes[0] < boxes[1]


def test_arms_and_metrics_are_chosen(page, panel):
    table = panel.get_by_role("table", name="Every arm")
    panel.get_by_label("Metric").select_option(label="AUC")
    page.eventually("result.metric", lambda metric: metric == "auc")
    for row in page.ask("result._arms()['rows']"):
        line = table.get_by_role("row").filter(
            has=page.view.get_by_role("rowheader", name=row["arm"], exact=True)
        )
        line.get_by_text(f"{row['value']} {row['interval']}").wait_for()
        assert row["gain"] in line.inner_text() and row["verdict"] in line.inner_text()
    panel.get_by_label("Arm", exact=True).select_option(label="majority")
    page.eventually("result.arm", lambda arm: arm == "majority")
    counts = page.ask("result.confusion().tolist()")
    panel.get_by_text("The worst mistakes of majority, the surest first").wait_for()
    told = panel.get_by_role("grid").get_by_role("button").all_inner_texts()
    assert [float(text.split("\n")[1].split(" of ")[0]) for text in told] == sum(counts, [])


def test_a_cell_opens_its_images_by_mouse(page, panel):
    wanted = page.ask("[case.name for case in result.cases('digit 7', 'digit 7')]")
    cell(panel, "digit 7", "digit 7").click()
    panel.get_by_text(f"{len(wanted)} test cases: digit 7, rightly told").wait_for()
    assert images(panel) == wanted and len(wanted) > 3
    assert cell(panel, "digit 7", "digit 7").get_attribute("aria-pressed") == "true"
    cell(panel, "digit 7", "digit 7").click()
    page.eventually("result.opened is None", bool)
    panel.get_by_role("region", name="Images of a cell").wait_for(state="hidden")


def test_a_cell_opens_its_images_by_keyboard_alone(page, panel):
    keys = page.view.keyboard
    panel.get_by_label("Arm", exact=True).focus()
    keys.press("Tab")
    for key in (
        "ArrowUp",
        "ArrowUp",
        "ArrowLeft",
        "ArrowLeft",
        "ArrowDown",
        "ArrowDown",
        "ArrowDown",
        "ArrowRight",
        "ArrowRight",
    ):
        keys.press(key)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.view.evaluate(focused).startswith("digit 8, predicted digit 8: ")
    keys.press("Enter")
    wanted = page.ask("[case.name for case in result.cases('digit 8', 'digit 8')]")
    panel.get_by_text(f"{len(wanted)} test cases: digit 8, rightly told").wait_for()
    assert images(panel) == wanted
    assert page.view.evaluate(focused).startswith("digit 8, predicted digit 8: ")  # the focus stays
    keys.press("Tab")
    assert page.view.evaluate("document.activeElement.textContent") == "Close"
    keys.press("Escape")
    page.eventually("result.opened is None", bool)
    page.view.wait_for_function(f"() => {focused}?.startsWith('digit 8, predicted digit 8: ')")
    for key in ("a", "b", "x", "m", "d", "d"):  # which the notebook would make cells of, or cut them
        keys.press(key)
    assert page.view.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length") == 2


def test_runs_are_compared_or_it_is_said_why_not(page, panel):
    table = panel.get_by_role("table", name="Runs")
    rows = table.get_by_role("row")
    assert rows.count() == 3 and "epochs 2 → 8" in rows.nth(2).inner_text()
    told = page.ask(
        "[result._beside()['rows'][1][name] for name in ('value', 'interval', 'gain', 'between')]"
    )
    assert all(words in rows.nth(2).inner_text() for words in told) and told[-1] == "◆ cannot tell"
    panel.get_by_label("A run to compare with").select_option(label="other split")
    rows.nth(3).wait_for()
    same = page.ask("sum(case in result.outcome.tested for case in result.others[1].tested)")
    reason = f"✕ not comparable: another test set: {same} of its 48 cases are among the 48 of first"
    assert reason in rows.nth(3).inner_text() and "seed 0 → 1" in rows.nth(3).inner_text()
    panel.get_by_role("button", name="Leave out other split").click()
    rows.nth(3).wait_for(state="detached")
    assert page.ask("len(result.others)") == 1


def test_names_stay_text(page, panel):
    cell(panel, HOSTILE, HOSTILE).click()
    panel.get_by_text(re.compile(f"test cases?: {re.escape(HOSTILE)}, rightly told")).wait_for()
    assert f"{HOSTILE}/" in images(panel)[0]
    assert page.view.evaluate("window.hit === undefined")
    pictures = page.view.evaluate(
        "[...document.querySelectorAll('.tl-panel img')].map(one => one.src.split(':')[0])"
    )
    assert set(pictures) == {"blob"}


@pytest.mark.parametrize(("theme", "width"), [("light", 900), ("dark", 900), ("dark", 390), ("light", 390)])
def test_it_is_readable(page, panel, tmp_path, theme, width):
    page.ask('[result.compare("other split"), result.open("digit 7", "digit 7")] and None')
    page.theme(theme)
    page.panel(width, 2400)
    images(panel)
    panel.screenshot(path=tmp_path / f"{theme}_{width}.png")
    page.ask('[result.leave_out("other split")] and None')
    assert page.overflowing() == [[]]
    contrast, text = page.faintest()
    assert contrast >= 4.5, text


def test_it_is_back_after_a_reload(page, panel):
    page.theme("light")
    page.panel(900)
    wanted = page.ask("[case.name for case in result.open('digit 7', 'digit 7')]")
    page.command("docmanager:save")
    page.reload()
    again = page.view.get_by_role("region", name="Result of first")
    again.get_by_text(f"{len(wanted)} test cases: digit 7, rightly told").wait_for()
    assert images(again) == wanted  # the bytes were asked for again
    cell(again, "digit 7", "digit 7").click()
    page.eventually("result.opened is None", bool)


def test_a_report_is_made_and_has_the_same_numbers(page, panel, settings):
    panel.get_by_role("button", name="Make this a report").click()
    panel.get_by_role("button", name="Stop making it").wait_for()
    bar = panel.get_by_label("Progress of the report")
    bar.wait_for()
    page.view.wait_for_function("() => document.querySelector('.tl-rs progress').value > 0", timeout=40_000)
    assert page.ask("1 + 1") == 2  # the kernel is free meanwhile
    panel.get_by_text("✓ Its numbers are those of this run.").wait_for(timeout=60_000)
    panel.get_by_role("button", name="Make the report again").wait_for()
    ours, theirs = (
        RunFolder.open(path) for path in (settings.runs_dir / "first", page.ask("str(result.made.folder)"))
    )
    assert ours.read("results.json") == theirs.read("results.json")
    pd.testing.assert_frame_equal(ours.predictions(), theirs.predictions())
    link = panel.get_by_role("link")
    assert link.inner_text().endswith(f"results/{theirs.path.name}/report.html")
    with page.context.expect_page() as opened:
        link.click()
    report = opened.value
    report.get_by_role("heading", name="Live training").wait_for()
    assert report.get_by_label("Verdict").first.is_visible() and HOSTILE in report.inner_text("body")
    report.close()


def test_a_run_that_goes_on_is_read_again(page, lab, settings, asked):
    live = start(
        replace(asked, epochs=100_000), settings.runs_dir / "going", blocking=False, settings=settings
    )
    try:
        page.run_cell('going = Result("going", settings=settings)\ngoing')
        panel = page.view.get_by_role("region", name="Result of going")
        panel.get_by_text("Results come at the end.").wait_for()
        assert panel.get_by_role("button", name="Make this a report").is_disabled()
        until(lambda: "epoch" in live.status.message)
        panel.get_by_role("button", name="Refresh").click()
        panel.get_by_text(re.compile("● running: fine-tuned: epoch")).wait_for()
        live.control.stop()
        assert live.wait(30).state == "stopped"
        panel.get_by_role("button", name="Refresh").click()
        panel.get_by_text(re.compile("□ stopped: stopped by an order; epoch .* is kept")).wait_for()
        panel.get_by_role("region", name="Verdict").wait_for()
        assert panel.get_by_role("grid").get_by_role("button").count() == 9
        panel.get_by_text("Orders and notes").click()
        panel.get_by_text("✓ Stop: applied at step").wait_for()
        assert panel.get_by_role("button", name="Make this a report").is_enabled()
        # A run that failed says why.
        failed = RunFolder.create(
            settings.runs_dir / "broken", "live_training", LiveRun(live.folder).request.to_dict()
        )
        failed.end("failed", error=f"the disk is full {HOSTILE}")
        page.run_cell('Result("broken", settings=settings)')
        broken = page.view.get_by_role("region", name="Result of broken")
        broken.get_by_text(f"✕ failed: the disk is full {HOSTILE}").wait_for()
        broken.get_by_text("Nothing was tested, so there is nothing to report.").wait_for()
        assert page.view.evaluate("window.hit === undefined")
    finally:
        live._process.kill()
        live._process.wait()
