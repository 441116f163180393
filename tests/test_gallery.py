"""A page of all reports: what is finished, what is not, what is damaged, and names that are an attack."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tljupyter.cli import main
from tljupyter.figures.history import training_plot
from tljupyter.refusals import Refusal
from tljupyter.reports.gallery import read_entry, thumbnail, write_gallery
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.status import told_status, write_status

HOSTILE = "<img src=x onerror=alert(1)>"
ROW = {
    "arm": "fine-tuned",
    "baseline": "from scratch",
    "metric": "balanced_accuracy",
    "labels_per_class": 5,
    "draws": 10,
    "gain": 0.26,
    "low": 0.18,
    "high": 0.33,
    "verdict": "helps",
    "exploratory": False,
}


def picture(width: int = 640, height: int = 360, kind: str = "png") -> str:
    "Noise as an address that carries it."
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    packed = io.BytesIO()
    Image.fromarray(noise).save(packed, kind)
    return f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"


def report(title: str, *pictures: str) -> str:
    "A page like those of the kit."
    shown = "".join(f'<img src="{one}">' for one in pictures)
    return f"<!doctype html><head><title>{title}</title></head><body>{shown}</body>"


def finished(folder: Path, template: str = "lung_xray", page: str = "", **changes) -> RunFolder:
    "A run that has ended well, with a verdict."
    with RunFolder.create(folder, template, {"data_dir": "some/films"}) as run:
        run.write("results.json", {"comparisons": [ROW | changes], "margin": 0.02})
        (folder / "report.html").write_text(page or report("Lung X-ray"))
    return run


class Cards(HTMLParser):
    "Text, links and tags of a page."

    def __init__(self, page: str):
        super().__init__()
        self.links, self.tags, self.addresses = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        told = dict(attributes)
        if tag == "a":
            self.links.append(told["href"])
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]


class TestWhatACardSays:
    def test_every_verdict_is_a_word_and_a_shape_with_its_interval(self, tmp_path):
        verdicts = {
            "helps": ("▲", 0.26, 0.18, 0.33, "+26</strong> [+18, +33]"),
            "hurts": ("▼", -0.034, -0.05, -0.012, "−3.4</strong> [−5.0, −1.2]"),
            "no difference that matters": ("■", 0.001, -0.01, 0.012, "+0.1</strong> [−1.0, +1.2]"),
            "cannot tell": ("◆", 0.05, None, None, "+5.0</strong> [no interval]"),
        }
        for word, (_, gain, low, high, _) in verdicts.items():
            finished(tmp_path / word, verdict=word, gain=gain, low=low, high=high)
        page = write_gallery(tmp_path).page.read_text()
        for word, (sign, *_, said) in verdicts.items():
            assert f"{sign}</span> <span>{word}</span>" in page and said in page
            assert f'<option value="{word}">{sign} {word} (1)</option>' in page
        assert page.count("points of balanced accuracy at 5 labels a class") == 4
        assert "films" in page and "some/films" not in page

    def test_the_newest_stands_first_with_its_date(self, tmp_path):
        for name, started in (("old", "2025-03-01T09:30:00.125Z"), ("new", "2026-03-01T09:30:00.125Z")):
            run = finished(tmp_path / name)
            write_status(run.path, replace(told_status(run.path), started=started))
        made = write_gallery(tmp_path)
        assert [entry.folder.name for entry in made.entries] == ["new", "old"]
        page = made.page.read_text()
        assert page.index("2026-03-01 09:30 UTC") < page.index("2025-03-01 09:30 UTC")

    def test_data_are_called_what_the_run_called_them(self, tmp_path):
        run = finished(tmp_path / "run")
        run.write("stamp.json", {"data": {"paediatric": "1", "adult": "2"}})
        assert read_entry(run.path).data == ("paediatric", "adult")
        run.write("results.json", {"data": {"films": "3"}})
        assert read_entry(run.path).data == ("films",)


class TestStates:
    def test_living_stopped_failed_and_dead_runs_are_what_they_are(self, tmp_path):
        living = RunFolder.create(tmp_path / "living", "few_digits")
        living.tell("running", 0.42)
        RunFolder.create(tmp_path / "failed", "few_digits").end("failed", error=f"full {HOSTILE}\nmore")
        RunFolder.create(tmp_path / "stopped", "few_digits").end("stopped")
        dead = RunFolder.create(tmp_path / "dead", "few_digits")
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
        write_status(dead.path, replace(told_status(dead.path), state="running", pid=int(gone.stdout)))
        made = write_gallery(tmp_path)
        assert made.states == {"failed": 2, "running": 1, "stopped": 1} and not made.damaged
        page = made.page.read_text()
        assert "● running, 42% when this page was made" in page and "✕ failed: the process died" in page
        assert "✕ failed: full &lt;img" in page and "more" not in page and "no verdict" in page
        living.release()

    def test_damaged_folders_are_listed_and_others_passed_over(self, tmp_path):
        torn = {
            "params.json": '{"schema": 1, "templ',
            "status.json": '{"state": "fini',
            "results.json": '{"comparisons": [',
            "stamp.json": "[]",
        }
        for name, text in torn.items():
            finished(tmp_path / name).path.joinpath(name).write_text(text)
        finished(tmp_path / "no params").path.joinpath("params.json").unlink()
        newer = finished(tmp_path / "newer").path / "params.json"
        newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 99'))
        (tmp_path / "someone else's").mkdir()
        (tmp_path / "someone else's" / "params.json").write_text('{"learning_rate": 1}')
        made = write_gallery(tmp_path)
        assert {Path(folder).name for folder in made.damaged} == {*torn, "no params", "newer"}
        page = made.page.read_text()
        assert len(Cards(page).links) == 6  # their reports can still be read
        assert page.count("✕ damaged: ") == 6 and "someone else" not in page
        assert str(tmp_path) not in page, "a machine path on a page that may be given away"
        for words in ("results.json is damaged", "stamp.json holds something else", "schema 99"):
            assert words in page

    @pytest.mark.parametrize(
        "change", [{"started": 7}, {"progress": "much"}, {"error": [1]}, {"state": "odd"}]
    )
    def test_a_status_of_another_form_is_damaged(self, tmp_path, change):
        path = finished(tmp_path / "run").path / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert write_gallery(tmp_path).states == {"damaged": 1}

    @pytest.mark.parametrize(
        "results",
        [
            {"comparisons": 3},
            {"comparisons": ["x"]},
            {"comparisons": [{"exploratory": False}]},
            {"comparisons": [ROW | {"gain": "much"}]},
            {"comparisons": [ROW | {"gain": float("nan")}]},
            {"comparisons": [ROW | {"verdict": HOSTILE}]},
            {"comparisons": [ROW | {"draws": None}]},
            {"margin": "wide", "data": 7},
        ],
    )
    def test_results_of_another_form_have_no_verdict(self, tmp_path, results):
        run = finished(tmp_path / "run")
        (run.path / "results.json").write_text(json.dumps(results))
        made = write_gallery(tmp_path)
        assert made.states == {"finished": 1} and made.entries[0].verdict == ""
        assert HOSTILE not in made.page.read_text()


class TestThePage:
    def test_names_stay_text_and_links_stay_inside(self, tmp_path):
        names = [
            HOSTILE.replace("/", ""),
            "javascript:alert(1)",
            'a"b&c',
            "line\nbreak",
            "百分 %41 #x?y",
            "\u202egpj",
        ]
        for name in names:
            finished(
                tmp_path / name,
                template=HOSTILE,
                page=report("&lt;script&gt;alert(1)&lt;/script&gt;"),
                arm=HOSTILE,
            )
        os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
        finished(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
        made = write_gallery(tmp_path)
        page = made.page.read_text(encoding="utf-8")
        read = Cards(page)
        assert HOSTILE not in page and read.tags.count("script") == 1 and "img" not in read.tags
        assert len(read.links) == len(names) + 1
        for link in read.links:
            assert ":" not in link and not link.startswith("/")
            assert os.path.exists(
                os.path.join(
                    os.fsencode(tmp_path),
                    unquote(link, errors="surrogateescape").encode(errors="surrogateescape"),
                )
            )

    def test_only_its_own_script_may_run_and_nothing_is_loaded(self, tmp_path):
        finished(tmp_path / "run", page=report("Lung X-ray", picture()))
        page = write_gallery(tmp_path).page.read_text()
        script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
            in page
        )
        assert all(
            one.startswith("data:image/webp") or one == "run/report.html" for one in Cards(page).addresses
        )
        assert not re.search(r"https?://", page) and "innerHTML" not in page and "url(" not in page

    def test_links_lead_to_reports_from_wherever_the_page_is(self, tmp_path):
        finished(tmp_path / "runs" / "deep" / "run")
        (tmp_path / "site").mkdir()
        made = write_gallery(tmp_path / "runs", tmp_path / "site" / "index.html")
        (link,) = Cards(made.page.read_text()).links
        assert link == "../runs/deep/run/report.html" and (made.page.parent / link).exists()

    def test_only_a_gallery_is_written_over(self, tmp_path):
        finished(tmp_path / "run")
        first = write_gallery(tmp_path)
        finished(tmp_path / "more")
        assert write_gallery(tmp_path).runs == 2 and first.page.name == "gallery.html"
        mine = tmp_path / "mine.html"
        mine.write_text("mine")
        for out, said in (
            (mine, "is no gallery"),
            (tmp_path / "run", "is no gallery"),
            (tmp_path / "nowhere" / "x.html", "no such folder"),
        ):
            with pytest.raises(Refusal, match=said):
                write_gallery(tmp_path, out)
        assert mine.read_text() == "mine"

    def test_folders_without_runs_are_refused(self, tmp_path):
        with pytest.raises(Refusal, match="no run is in it or below"):
            write_gallery(tmp_path)
        with pytest.raises(Refusal, match="no such folder"):
            write_gallery(tmp_path / "nowhere")

    def test_a_circle_of_links_ends(self, tmp_path):
        finished(tmp_path / "runs" / "run")
        (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
        assert write_gallery(tmp_path).runs == 1


class TestThumbnail:
    def small(self, *pictures: str) -> Image.Image | None:
        made = thumbnail(report("x", *pictures).encode())
        return Image.open(io.BytesIO(base64.b64decode(made.split(",")[1]))) if made else None

    def test_the_first_picture_that_shows_something_is_taken_small(self):
        made = self.small(picture(64, 64), picture(1400, 700), picture(800, 800))
        assert made.size == (320, 160) and made.format == "WEBP"
        assert self.small(picture(64, 64), picture(64, 32, "jpeg")).size == (64, 64)
        assert (
            len(thumbnail(report("x", picture(1400, 700)).encode())) < 80_000
        )  # of noise, the worst there is

    def test_what_is_no_picture_is_passed_over(self):
        drawing = "data:image/svg+xml;base64,PHN2Zy8+"
        torn = picture()[:4001]
        good = picture(400, 200, "jpeg")
        assert self.small() is None and self.small(drawing) is None
        assert self.small("data:image/png;base64,AAAA", drawing, good).size == (320, 160)
        assert self.small(torn[: len(torn) - len(torn.split(",")[1]) % 4], picture(64, 64)).size == (64, 64)

    @pytest.mark.slow
    def test_a_picture_that_claims_to_be_enormous_is_not_opened(self):
        packed = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(packed, "png")
        bomb = f"data:image/png;base64,{base64.b64encode(packed.getvalue()).decode()}"
        started = time.perf_counter()
        assert self.small(bomb) is None and self.small(bomb, picture(200, 100)).size == (200, 100)
        assert time.perf_counter() - started < 1


class TestCommand:
    def test_the_last_line_is_the_page(self, tmp_path, capsys):
        finished(tmp_path / "good")
        RunFolder.create(tmp_path / "bad", "few_digits").end("failed")
        finished(tmp_path / "torn").path.joinpath("params.json").write_text("{")
        assert main(["gallery", str(tmp_path)]) == 0
        told = capsys.readouterr()
        assert told.out.splitlines()[0].startswith("3 runs, ") and "1 damaged" in told.out
        assert told.out.splitlines()[-1] == str(tmp_path / "gallery.html") and "torn" in told.err
        assert main(["gallery", str(tmp_path), "--out", str(tmp_path / "x.html"), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["runs"] == 3 and list(told["damaged"]) == [str(tmp_path / "torn")]
        assert main(["gallery", str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_a_thousand_runs_take_seconds(tmp_path):
    plot = training_plot(
        {"fine-tuned": [{"epoch": e, "loss": 0.8**e, "accuracy": 1 - 0.8**e} for e in range(20)]}
    )
    page = report("Lung X-ray") + plot._repr_html_()
    first = finished(tmp_path / "sweep0" / "run0", page=page).path
    for i in range(1, 1000):
        folder = tmp_path / f"sweep{i % 10}" / f"run{i}"
        folder.mkdir(parents=True)
        for path in first.iterdir():
            if path.suffix in (".json", ".html"):
                os.link(path, folder / path.name)
    started = time.perf_counter()
    made = write_gallery(tmp_path)
    assert made.runs == 1000 and time.perf_counter() - started < 60
    assert made.page.read_bytes().count(b"data:image/webp") == 1000
