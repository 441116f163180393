"""The tutorial from a folder of films to a verdict, cell by cell, as a person goes through it: every panel is used."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tljupyter.runs.files import read_lines
from tljupyter.runs.live import LiveRun

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TUTORIAL = Path(__file__).resolve().parents[2] / "nbs" / "tutorials" / "chest_films.ipynb"


def run(page, cells: list[int], wait: bool = True) -> None:
    "Run some cells of the notebook, as Shift-Enter would."
    for at in cells:
        page.view.evaluate("at => { jupyterapp.shell.currentWidget.content.activeCellIndex = at }", at)
        page.command("notebook:run-cell", wait)


def test_from_a_folder_of_films_to_a_verdict(lab, tmp_path):
    notebook = lab.folder / TUTORIAL.name
    shutil.copyfile(TUTORIAL, notebook)
    cells = json.loads(TUTORIAL.read_text())["cells"]
    code = [at for at, cell in enumerate(cells) if cell["cell_type"] == "code"]
    monitor, waiting = (
        next(at for at in code if words in "".join(cells[at]["source"]))
        for words in ("Monitor(live)", "live.wait()")
    )
    with lab.open(notebook) as page:
        view = page.view
        run(page, [at for at in code if at < monitor])

        films = view.get_by_role("region", name=re.compile("^Data view"))
        images = films.get_by_role("listbox", name="Images").get_by_role("option")
        images.nth(11).wait_for()
        images.first.click()
        label = page.ask("view.row(0).label")
        view.keyboard.press("ArrowRight")
        view.keyboard.press("x")
        films.get_by_text("1 edit").wait_for()
        dropped = read_lines(Path(page.ask("str(view.journal.path)")))[-1]["items"][0]["name"]
        assert label and page.ask("len(view.source) - len(view.domain)") == 1
        films.screenshot(path=tmp_path / "1 films.png")

        picker = view.get_by_role("region", name="Backbone picker")
        picker.get_by_role("button", name="Measure squeezenet1_0 here").click()
        picker.get_by_text(re.compile(r"\d+ ms|\d\.\d+ ms")).first.wait_for(timeout=60_000)
        picker.screenshot(path=tmp_path / "2 picker.png")

        tree = view.get_by_role("region", name=re.compile("^Freeze plan"))
        tree.get_by_role("row", name=page.ask("stage")).first.get_by_label("Learning rate").fill("0.5")
        view.keyboard.press("Enter")
        page.eventually("next(p.rate for p in tree.plan.stages if p.name == stage)", lambda rate: rate == 0.5)
        tree.screenshot(path=tmp_path / "3 tree.png")

        run(page, [monitor])
        live = LiveRun(page.ask("str(live.folder)"))
        assert "rate: 0.5" in live.request.plan
        watched = view.get_by_role("region", name=re.compile("^Training "))
        page.eventually("'fine-tuned' in live.watch().arms or live.status.ended", bool, 120)
        watched.get_by_role("button", name="Pause", exact=True).click()
        watched.get_by_role("button", name="Resume", exact=True).wait_for()
        assert live.status.state == "paused"
        watched.screenshot(path=tmp_path / "4 monitor.png")
        watched.get_by_role("button", name="Resume", exact=True).click()
        page.eventually("live.status.ended", bool, 300)

        run(page, [at for at in code if at >= waiting][:2])
        assert live.status.state == "finished", live.status.error
        result = view.get_by_role("region", name=re.compile("^Result of"))
        verdict = result.get_by_role("region", name="Verdict")
        verdict.wait_for()
        assert re.search("[▲▼■◆]", verdict.inner_text())
        assert dropped not in set(live.run.predictions()["case"])
        assert re.search(
            "(helps|hurts|no difference that matters|cannot tell)$", page.ask("verdict['verdict']")
        )
        result.screenshot(path=tmp_path / "5 result.png")

        result.get_by_role("button", name=re.compile("report", re.IGNORECASE)).first.click()
        made = page.eventually(
            "result.made and result.made.status.state", lambda state: state in ("finished", "failed"), 300
        )
        assert made == "finished"
        report = json.loads(Path(page.ask("str(result.made.folder / 'results.json')")).read_text())
        assert [report[name] for name in ("arms", "comparisons")] == [
            live.results()[name] for name in ("arms", "comparisons")
        ]
        run(page, [at for at in code if at >= waiting][2:])
