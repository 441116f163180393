"""The data view in a real JupyterLab: look, page, relabel by key, undo, drop, repair, reload; light, dark and narrow."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

pytestmark = pytest.mark.browser

HOSTILE = "ill<img src=x onerror=alert(1)>"


def film(seed: int) -> Image.Image:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(160, 160)), 4)
    return Image.fromarray(((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8))


@pytest.fixture
def films(tmp_path) -> Path:
    "Forty films of patients who stand on both sides; one is no picture."
    folder = tmp_path / "films"
    folder.mkdir()
    rows = ["file,label,patient,split"]
    for number in range(40):
        film(number).save(folder / f"film_{number:02d}.png")
        side = "test" if number % 5 == 4 else "train"
        rows.append(f"film_{number:02d}.png,{('normal', HOSTILE)[number % 2]},p{number // 3},{side}")
    (folder / "film_07.png").write_text("no picture")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "labels.edits.jsonl").read_text().splitlines()[1:]]


def test_look_edit_repair_and_come_back(lab, films, tmp_path):
    notebook = lab.write(
        "data_view",
        f"from tljupyter.widgets.data_view import DataView\nview = DataView({str(films)!r}, per_page=24)\nview",
    )
    with lab.open(notebook) as page:
        page.run_all()
        view = page.view
        face = view.get_by_role("region", name="Data view of films")
        grid, said = face.get_by_role("listbox", name="Images"), face.locator(".tl-said")
        options = grid.get_by_role("option")

        def shown(place: int) -> str:
            return options.nth(place).get_attribute("aria-label")

        def edited(count: int) -> dict:
            face.get_by_text(f"{count} edit").wait_for()
            return journal(films)[-1]

        # Thumbnails come, the unreadable one says why, and the gate has looked
        view.wait_for_function("() => document.querySelectorAll('.tl-dv-option img').length == 23")
        assert options.count() == 24
        assert "not an image" in grid.locator(".tl-shot-fault").inner_text()
        finding = face.get_by_role("listitem").filter(has_text="group-across-splits")
        finding.wait_for()
        assert face.get_by_text("✕ 1 finding in the way").is_visible()
        view.screenshot(path=tmp_path / "light.png")

        # By keys: to the right, relabel, and the notebook keeps its cells
        options.first.click()
        view.keyboard.press("ArrowRight")
        assert shown(1).startswith(HOSTILE)
        view.keyboard.press("2")
        last = edited(1)
        assert (last["edit"], last["items"][0]["name"]) == ("relabel", "film_01.png")
        assert (last["items"][0]["old"], last["items"][0]["new"]) == (HOSTILE, "normal")
        assert shown(1).startswith(f"normal, was {HOSTILE}") and "→ normal" in said.inner_text()
        assert options.nth(1).evaluate("one => one === document.activeElement")  # the focus stays
        view.keyboard.press("ArrowDown")
        view.keyboard.press("x")
        last = edited(2)
        dropped = last["items"][0]["name"]
        assert last["edit"] == "drop" and page.ask("len(view.domain)") == 39
        view.keyboard.press("u")
        assert edited(3)["edit"] == "unsure" and page.ask("len(view.domain)") == 40
        view.keyboard.press("z")
        face.get_by_text("2 edits").wait_for()
        assert journal(films)[-1]["edit"] == "undo" and page.ask("len(view.domain)") == 39
        assert page.ask("len(get_ipython().user_ns['In'])") >= 1 and view.locator(".jp-CodeCell").count() == 1

        # Another class and back, another page and back: the edits are there
        face.get_by_label("Class", exact=True).select_option(label="normal")
        face.get_by_text("20 images", exact=True).wait_for()
        assert shown(0).endswith("film_00.png") and shown(1).endswith("film_01.png")
        face.get_by_label("Class", exact=True).select_option(label=HOSTILE)
        face.get_by_text("19 images", exact=True).wait_for()
        assert not any("film_01.png" in shown(place) for place in range(19))
        face.get_by_label("Class", exact=True).select_option(label="all")
        face.get_by_text("39 images", exact=True).wait_for()
        face.get_by_role("button", name="Next page").click()
        face.get_by_text("of 2").wait_for()
        view.wait_for_function("() => document.querySelectorAll('.tl-dv-option img').length == 15")
        options.first.click()
        view.keyboard.press("ArrowLeft")  # over the edge of the page
        view.wait_for_function("() => document.activeElement.ariaLabel?.endsWith('film_24.png')")
        assert options.nth(23).evaluate("one => one === document.activeElement")

        # One click mends the split
        finding.get_by_role("button", name="Show").click()
        face.get_by_text("of a finding").wait_for()
        finding.get_by_role("button", name="Show").click()
        face.get_by_role("button", name="Check again").click()
        finding.get_by_role("button", name="Repair").and_(view.locator(":enabled")).click()
        last = edited(3)
        assert last["edit"] == "repair" and last["finding"] == "group-across-splits"
        assert {item["new"] for item in last["items"]} <= {"train", "test"}
        face.get_by_text("✓ nothing in the way").wait_for()
        finding.wait_for(state="detached")

        # F5: the view is back with its edits, and they can still be undone
        page.command("docmanager:save")
        page.reload()
        face.get_by_text("3 edits").wait_for()
        view.wait_for_function("() => document.querySelectorAll('.tl-dv-option img').length > 20")
        face.get_by_label("State", exact=True).select_option(label="dropped")
        face.get_by_text("1 image", exact=True).wait_for()
        assert shown(0).endswith(dropped)
        view.screenshot(path=tmp_path / "after.png")
        face.get_by_role("button", name="z Undo").click()
        face.get_by_text("2 edits").wait_for()
        assert "Undone: repair group-across-splits" in said.inner_text()
        face.get_by_label("State", exact=True).select_option(label="all")

        page.theme("dark")
        options.nth(3).click()
        view.screenshot(path=tmp_path / "dark.png")
        page.panel(390, height=1500)
        assert face.evaluate("one => one.scrollWidth <= one.clientWidth + 1")
        view.screenshot(path=tmp_path / "narrow.png")


def test_ten_thousand_images_open_at_once_and_few_are_decoded(lab, tmp_path):
    folder = tmp_path / "many"
    for label in ("round", "square"):
        (folder / label).mkdir(parents=True)
    film(0).resize((448, 448)).save(tmp_path / "film.jpg")
    for number in range(10_000):
        os.link(tmp_path / "film.jpg", folder / ("round", "square")[number % 2] / f"{number:05d}.jpg")
    notebook = lab.write(
        "many_images",
        "import time\nfrom tljupyter.widgets.data_view import DataView",
        f"start = time.time()\nview = DataView({str(folder)!r})\nview",
    )
    with lab.open(notebook) as page:
        page.run_all()
        ready = "() => document.querySelectorAll('.tl-dv-option img').length == 48 && Date.now() / 1000"
        seconds = page.view.wait_for_function(ready, polling=20).json_value() - page.ask("start")
        assert page.view.get_by_text("10,000 images of many").is_visible()
        assert page.ask("view.thumbnails.decoded") <= 48 + 12  # a page, and the still form
        assert page.view.get_by_role(
            "button", name="Check 10,000 images"
        ).is_visible()  # it waits to be asked
        page.view.get_by_label("Page", exact=True).fill("100")
        page.view.get_by_label("Page", exact=True).press("Enter")
        page.view.wait_for_function(
            "() => document.querySelector('.tl-dv-option')?.ariaLabel.endsWith('round/09504.jpg')"
        )
        assert seconds < 3  # from the cell to the last thumbnail of the first page
