"""The result of a run without a browser, and the report that repeats it: real trainings, real kernels, the same numbers."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_live import until, write_digits

from tljupyter.backbones.weights import load_backbone
from tljupyter.cli import main
from tljupyter.domains.draws import split_groups
from tljupyter.domains.readers import read_images
from tljupyter.evidence.arms import LINEAR_PROBE, Headline
from tljupyter.evidence.comparison import Preset, compare
from tljupyter.evidence.images import ImageArms
from tljupyter.figures.run_comparison import differences, gain_between, value_words, why_not
from tljupyter.refusals import Refusal
from tljupyter.reports.clean import clean_html
from tljupyter.reports.making import begin_report, find_report
from tljupyter.reports.schema import read_schema
from tljupyter.reports.stamp import report_words, stamp
from tljupyter.reports.templates import find_template, list_templates
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.live import LiveRun, start
from tljupyter.runs.outcome import Outcome
from tljupyter.runs.request import Request
from tljupyter.runs.work import TEMPLATE
from tljupyter.settings import Settings
from tljupyter.widgets.monitor import Monitor
from tljupyter.widgets.result import MOST_CASES, Result, _beside_notebook

HOSTILE = "<img src=x onerror='window.hit=1'>"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    "Digits of two classes, one under a name that is an attack."
    made = tmp_path_factory.mktemp("result")
    write_digits(made / "digits", 60)
    (made / "digits" / "digit 1").rename(made / "digits" / HOSTILE)
    return made


@pytest.fixture(scope="module")
def settings(place) -> Settings:
    return Settings(cache_dir=place / "cache", runs_dir=place / "runs", device="cpu", threads=1)


@pytest.fixture(scope="module")
def asked(place) -> Request:
    return Request(str(place / "digits"), "digits_convnet", "random", labels_per_class=20, epochs=3)


@pytest.fixture(scope="module")
def train(asked, settings):
    "A training that has ended, once for each name."

    def trained(name: str, **changes) -> LiveRun:
        folder = settings.runs_dir / name
        if folder.exists():
            return LiveRun(folder)
        return start(replace(asked, **changes), folder, where="thread", blocking=True, settings=settings)

    return trained


@pytest.fixture(scope="module")
def drawn(place, settings) -> RunFolder:
    "What another template leaves: three draws of two budgets, and a stamp."
    domain = read_images(place / "digits")
    domain = replace(
        domain, splits=split_groups(domain.labels, None, {"train": 0.6, "test": 0.4}, 0, domain.classes)
    )
    arms = ImageArms(load_backbone("digits_convnet", "random"))
    with RunFolder.create(
        settings.runs_dir / "drawn", "lung_xray", {"data_dir": str(place / "digits")}
    ) as run:
        made = compare(
            domain,
            (arms.majority(), arms.linear_probe()),
            Preset("small", (2, 5), draws=3, network_draws=1, tuning_draws=0, trials=1),
            Headline(labels_per_class=2, arm=LINEAR_PROBE, baseline="majority"),
            sink=run,
        )
        run.write("results.json", made.results())
        stamp(run, {"seed": 0}, {domain.name: domain.digest})
    return run


def numbers(run: RunFolder) -> tuple[dict, pd.DataFrame]:
    return run.read("results.json"), run.predictions()


class TestTemplate:
    def test_its_parameters_are_those_of_a_request(self, place):
        schema = read_schema(find_template(TEMPLATE))
        assert [one.name for one in schema.parameters] == [field.name for field in fields(Request)]
        for one, field in zip(schema.parameters, fields(Request), strict=True):
            assert one.required == (field.default is MISSING)
            default = tuple(one.default) if isinstance(one.default, list) else one.default
            assert one.required or (type(default) is type(field.default) and default == field.default), (
                one.name
            )
        given = {"data_dir": str(place)}
        assert Request.from_dict(schema.validate(given)) == Request(str(place))
        # What a command line says comes back as it was.
        order = {"kind": "thaw", "value": ["stem"], "step": 3}
        plan = "head_rate: 1.0\nstages:\n- {name: stem, frozen: true}\n"
        full = {
            **schema.validate(given),
            "plan": plan,
            "replay": [order, {**order, "step": 4}],
            "balance": False,
        }
        words = report_words(TEMPLATE, full)[2:]
        typed = dict(word.split("=", 1) for word in words if word != "-p")
        assert typed.keys() == full.keys() and schema.validate(typed) == full
        with pytest.raises(Refusal, match=r"replay = .* It takes records as JSON"):
            schema.validate(typed | {"replay": "rate"})
        with pytest.raises(Refusal, match="there is no file or folder"):
            schema.validate({"data_dir": str(place / "nothing")})

    def test_it_is_listed(self, capsys):
        assert TEMPLATE in [schema.template for schema in list_templates()]
        assert main(["templates"]) == 0
        told = capsys.readouterr().out
        assert "live_training: Live training\nA backbone fine-tuned on a folder" in told

    @pytest.mark.slow
    def test_a_steered_run_and_its_report_have_the_same_numbers(self, place, asked, settings):
        live = start(
            replace(asked, epochs=100_000), settings.runs_dir / "steered", blocking=False, settings=settings
        )
        steps = lambda: (live.folder / "metrics.jsonl").exists() and len(live.run.metrics()) > 5  # noqa: E731
        until(steps)
        for order in (live.control.rate(0.5), live.control.rate(0.8), live.control.thaw("stem")):
            live.control.wait(order, 20)
        epochs = len(live.watch().arms["fine-tuned"].epochs)
        until(lambda: len(live.watch().arms["fine-tuned"].epochs) > epochs + 3)
        live.control.stop()
        assert live.wait(60).state == "stopped"

        result = Result(live, settings=settings)
        assert [line.split(":")[0] for line in result.orders()] == [
            "✓ Learning rate × 0.5", "✓ Learning rate × 0.8", "✓ Thaw stem", "✓ Stop",
        ]  # fmt: skip
        assert result.status.message.startswith("stopped by an order; epoch") and len(result.arms()) == 3
        face, seen = result.widget, []
        face.observe(lambda change: seen.append(change.new), "report")
        made = result.make_report()
        assert made is result.make_report() and made.wait(120).state == "finished", made.status.error
        until(lambda: seen[-1].get("same"), 5)  # the face was told, until the end
        assert seen[-1]["same"].startswith("✓") and seen[-1]["page"].endswith("report.html")
        assert any(one["going"] and one["progress"] > 0 for one in seen) and not seen[-1]["going"]
        until(lambda: not result._follower.is_alive(), 5)
        report = LiveRun(made.folder)
        (ours, rows), (theirs, same_rows) = numbers(live.run), numbers(report.run)
        pd.testing.assert_frame_equal(rows, same_rows)
        assert ours == theirs and len(ours["arms"]) > 10 and (rows["arm"] == "fine-tuned").any()
        assert report.run.parameters == json.loads(json.dumps(live.again().to_dict()))
        assert report.again() == live.again() and len(report.request.replay) == 4
        page = made.page.read_text()
        assert page.index('class="verdict"') < page.index("How it learned") < page.index("How was this made")
        for words in (
            "✓ Thaw stem: applied at step",
            "stopped by an order",
            "tljupyter report live_training",
            "ringed",
        ):
            assert words.lower() in page.lower(), words
        assert HOSTILE not in page and "window.hit" in page

        # It is a run like any other: for the monitor, for a result, and for who looks for it after a restart.
        monitor = Monitor(made.folder, settings=settings)
        assert monitor.status.state == "finished" and len(monitor.orders()) == 4
        assert Result(made.folder, settings=settings).made.page == made.page
        again = Result("steered", settings=settings)
        assert again.made.folder == made.folder and again._report()["same"].startswith("✓")

        # Numbers that are not the same are not called the same.
        told = report.run.read("results.json")
        told["arms"][0]["mean"] += 0.1
        report.run.write("results.json", told)
        assert again._report()["same"].startswith("✕ Its numbers are not those")

    @pytest.mark.slow
    def test_a_report_is_paused_and_stopped_as_any_training(self, place, asked, settings, capsys):
        endless = replace(asked, epochs=100_000).to_dict()
        early = begin_report(TEMPLATE, endless, settings.runs_dir / "early", settings)
        made = begin_report(TEMPLATE, endless, settings.runs_dir / "held", settings)
        until(lambda: (early.folder / "params.json").exists())
        LiveRun(early.folder).control.stop()
        lines = made.folder / "metrics.jsonl"
        until(lambda: lines.exists() and b'"event": "epoch"' in lines.read_bytes())
        for order in ("pause", "resume", "stop"):
            assert main([order, str(made.folder)]) == 0
        assert made.wait(60).state == "finished"
        live, told = LiveRun(made.folder), capsys.readouterr().out
        assert told.count("applied at step") == 3 and live.results()["headline"]["arm"] == "fine-tuned"
        assert [order["kind"] for order in live.again().replay] == ["stop"]
        assert "stopped by an order" in made.page.read_text()
        # The other was stopped before there was anything to keep: it says so on its page.
        assert early.wait(60).state == "stopped" and "This run was stopped" in early.page.read_text()
        assert not LiveRun(early.folder).results()


class TestWhatItSays:
    def test_cells_hold_what_was_counted(self, train, settings):
        result = Result(train("plain"), settings=settings)
        rows = result.outcome.predictions
        for arm in result.outcome.arms:
            result.choose(arm=arm)
            test = rows[(rows["arm"] == arm) & (rows["part"] == "test")]
            table = pd.crosstab(test["label"], test["predicted"]).reindex(
                index=[0, 1], columns=[0, 1], fill_value=0
            )
            np.testing.assert_array_equal(result.confusion(), table)
            for i, true in enumerate(result.outcome.classes):
                for j, predicted in enumerate(result.outcome.classes):
                    cell = result.cases(true, predicted)
                    wanted = test[(test["label"] == i) & (test["predicted"] == j)]
                    assert {one.name for one in cell} == set(wanted["case"]) and len(cell) == len(wanted)
                    assert [one.probability for one in cell] == sorted(wanted[f"p_{j}"], reverse=True)
            wrong = test[test["label"] != test["predicted"]]
            assert len(result.mistakes()) == min(12, len(wrong))
            assert {one.case for one in result.mistakes()} <= set(wrong["case"])

    def test_values_and_gains_are_those_of_the_results(self, train, settings):
        result = Result(train("plain"), settings=settings)
        found = {row["arm"]: row for row in result.outcome.results["arms"] if row["metric"] == "auc"}
        for row in result.choose(metric="auc").arms():
            assert (row.mean, row.low, row.high) == tuple(
                found[row.arm][name] for name in ("mean", "low", "high")
            )
            assert bool(row.gain) == (row.arm != LINEAR_PROBE)
        told = {row["arm"]: row for row in result._arms()["rows"]}
        assert told["fine-tuned"]["gain"] and not told[LINEAR_PROBE]["gain"]
        assert all(row["gain"] == "" for row in result.choose(metric="log_loss")._arms()["rows"])
        assert (
            result._verdict()["lines"][0]["shape"] == "◆" and "Declared before" in result._verdict()["plain"]
        )

    def test_several_draws_and_budgets_of_another_template(self, drawn, settings):
        result = Result(drawn, settings=settings)
        assert result.labels_per_class == 2 and result._choice()["budgets"] == [2, 5]
        assert result.confusion().sum() == len(result.outcome.tested) == 48
        often = [
            one for row in result.outcome.classes for one in result.cases(row, result.outcome.classes[1])
        ]
        assert {one.draws for one in often} == {3} and any(" in " in one.words for one in often)
        assert sum(one.times for one in often) / 3 == pytest.approx(result.confusion()[:, 1].sum())
        before = result.confusion()
        assert (result.choose(labels_per_class=5).confusion() != before).any()
        assert result.outcome.domain.counts() and "Every arm, at 5 labels a class" in result.static_html()
        assert result.command.startswith("tljupyter report lung_xray -p data_dir=")

    def test_a_run_before_and_after_its_end(self, asked, settings):
        folder = settings.runs_dir / "going"
        run = RunFolder.create(folder, TEMPLATE, asked.to_dict())
        result = Result(folder, settings=settings)
        run.tell("running", 0.3, "reading images")
        assert result.refresh()._about()["words"] == "● running: reading images"
        assert "Results come at the end" in result.static_html() and result.arms() == []
        assert result._matrix() is result._verdict() is result._shown() is None and result._mistakes() == []
        with pytest.raises(Refusal, match="The run is running. A report repeats a run that has ended"):
            result.make_report()
        with pytest.raises(Refusal, match="nothing was tested yet"):
            result.confusion()
        run.end("failed", error="the disk is full; make room and resume the run")
        assert result.refresh()._about()["words"].startswith("✕ failed: the disk is full")
        assert result._report()["reason"] == "Nothing was tested, so there is nothing to report."
        start(asked, folder, where="thread", blocking=True, resume=True, settings=settings)
        assert result.refresh().status.state == "finished" and len(result.arms()) == 3

    def test_results_of_another_form_are_not_misread(self, settings):
        with RunFolder.create(settings.runs_dir / "odd", "greeting", {"name": "x"}) as run:
            run.write("results.json", {"schema": 1, "headline": {"arm": "linear probe"}, "arms": []})
        result = Result(run, settings=settings)
        assert (
            "no results that can be shown" in result.static_html() and repr(result) == "Result(odd, finished)"
        )
        assert Result(settings=settings).outcome.name == "odd"  # the newest that has a results.json

    def test_names_are_text_and_the_still_form_is_clean(self, train, drawn, settings):
        result = Result(train("plain"), "drawn", settings=settings)
        page = result.static_html()
        assert HOSTILE not in page and "&lt;img src=x" in page and "<script" not in page
        kept = clean_html(page)
        for words in (
            "Every arm",
            "Compared with other runs",
            "The worst mistakes of fine-tuned",
            "template live_training",
        ):
            assert words in kept
        assert kept.count("<img") == page.count("<img") and len(page) < 400_000


class TestRunsBesideEachOther:
    def test_what_differs_in_words(self, train):
        plan = "head_rate: 1.0\nstages:\n- {name: stem, frozen: true, thaw_at: 3}\n- {name: block2, frozen: false, rate: 0.1}\n"
        assert value_words("plan", plan) == "stem from epoch 3 and block2 × 0.1"
        assert (
            value_words("plan", "") == "the last two stages"
            and value_words("plan", "stages: 3") == "not a freeze plan"
        )
        assert value_words("replay", [{}, {}]) == "2 orders" and value_words("allow", []) == "none"
        assert value_words("learning_rate", 3e-4) == "0.0003" and len(value_words("data_dir", "x" * 99)) == 48
        one, other = (
            Outcome(train("plain").folder),
            Outcome(train("longer", epochs=9, learning_rate=0.01).folder),
        )
        assert differences(one, other) == ["epochs 3 → 9", "learning rate 0.0003 → 0.01"]

    def test_a_gain_between_runs_is_that_of_the_arms_on_the_same_cases(self, train):
        one, other = (
            Outcome(train("plain").folder),
            Outcome(train("longer", epochs=9, learning_rate=0.01).folder),
        )
        gain = gain_between(one, other, "balanced_accuracy")
        level = [
            next(
                r["mean"]
                for r in run.results["arms"]
                if (r["arm"], r["metric"]) == ("fine-tuned", "balanced_accuracy")
            )
            for run in (one, other)
        ]
        assert (
            gain["gain"] == pytest.approx(level[1] - level[0]) and gain["low"] <= gain["gain"] <= gain["high"]
        )
        assert gain["verdict"] == "cannot tell" and "one draw" in gain["speaks_of"]
        back = gain_between(other, one, "balanced_accuracy")
        assert (back["low"], back["high"]) == pytest.approx((-gain["high"], -gain["low"]))

    @pytest.mark.slow
    def test_what_cannot_be_compared_is_said(self, train, drawn, place, settings):
        plain = Outcome(train("plain").folder)
        assert why_not(plain, Outcome(train("longer", epochs=9, learning_rate=0.01).folder)) == ""
        assert why_not(plain, Outcome(drawn)) == ""  # another template, the same test set of the same data
        split = Outcome(train("other split", seed=5).folder)
        same = len(plain.tested.keys() & split.tested.keys())
        assert why_not(plain, split) == f"another test set: {same} of its 48 cases are among the 48 of plain"
        # The same names, but another content: found by the digest, which the run has written down.
        if not (place / "brighter").exists():
            write_digits(place / "brighter", 60, skip=60)
            (place / "brighter" / "digit 1").rename(place / "brighter" / HOSTILE)
            for path in sorted((place / "brighter").rglob("*.png")):
                path.rename(path.with_name(f"{int(path.stem) - 60:03}.png"))
        brighter = Outcome(train("brighter", data_dir=str(place / "brighter")).folder)
        assert brighter.tested == plain.tested and why_not(plain, brighter).startswith("other data: ")
        write_digits(place / "nines", 60, codes=(7, 9))
        assert "other classes" in why_not(
            plain, Outcome(train("nines", data_dir=str(place / "nines")).folder)
        )
        result = Result("plain", "other split", settings=settings).compare("brighter").compare("brighter")
        assert [bool(row.reason) for row in result.runs()] == [False, True, True]
        assert "✕ not comparable: other data" in result.static_html()
        assert [row.name for row in result.leave_out("other split").runs()] == ["plain", "brighter"]

    def test_without_a_digest_it_says_that_only_names_were_compared(self, train, settings):
        longer = train("longer", epochs=9, learning_rate=0.01)
        kept = longer.results()
        try:
            longer.run.write("results.json", {name: part for name, part in kept.items() if name != "data"})
            row = Result("plain", longer, settings=settings).runs()[1]
            assert (
                row.caution == "longer did not write down what its data were: compared by the names of cases"
            )
            assert row.between == "◆ cannot tell"
        finally:
            longer.run.write("results.json", kept)


class TestFace:
    def test_a_browser_gets_json_answers_and_the_bytes_it_asks_for(self, train, settings):
        result, sent = Result(train("plain"), "longer", settings=settings), []
        face = result.widget
        face.send = lambda content, buffers=(): sent.append((content, buffers))
        for part in result.parts():
            json.dumps(getattr(face, part), allow_nan=False)
        counts = result.confusion()
        true, predicted = (int(code) for code in np.unravel_index(counts.argmax(), counts.shape))
        result._heard(face, {"do": "open", "true": true, "predicted": predicted, "answer": 1}, [])
        rows = face.cases["rows"]
        assert len(rows) == counts[true, predicted] and face.matrix["open"] == [true, predicted]
        result._heard(face, {"do": "thumbnails", "items": [row["item"] for row in rows[:3]]}, [])
        until(lambda: any("thumbnails" in content for content, _ in sent), 10)
        content, buffers = next(one for one in sent if "thumbnails" in one[0])
        names = result.outcome.images.names
        assert [names[one["item"]] for one in content["thumbnails"]] == [row["name"] for row in rows[:3]]
        assert all(small[:2] in (b"\xff\xd8", b"\x89P") for small in buffers)
        result._heard(face, {"do": "close", "answer": 2}, [])
        assert face.cases is None and [one["ok"] for one, _ in sent if "answer" in one] == [True, True]

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ({"do": "choose", "arm": "fine tuned"}, 'Did you mean "fine-tuned"'),
            ({"do": "choose", "metric": "f1"}, 'has no metric "f1"'),
            ({"do": "choose", "labels_per_class": 7}, 'has no number of labels a class "7"'),
            ({"do": "open", "true": 0, "predicted": 2}, "there is no class 2"),
            ({"do": "open", "true": -1, "predicted": 0}, "there is no class -1"),
            ({"do": "thumbnails", "items": [120]}, "has images 0 to 119"),
            ({"do": "thumbnails", "items": ["0"]}, "has images 0 to 119"),
            ({"do": "compare", "run": "plane"}, 'Did you mean "plain"'),
            ({"do": "jump"}, "does not know how to jump"),
        ],
    )
    def test_what_cannot_be_is_refused(self, train, settings, message, words):
        result = Result(train("plain"), settings=settings)
        with pytest.raises(Refusal, match=words):
            result.receive(message)

    def test_large_cells_come_in_portions(self, train, settings, monkeypatch):
        monkeypatch.setattr("tljupyter.widgets.result.MOST_CASES", 5)
        result = Result(train("plain"), settings=settings)
        result._most = 5
        counts = result.confusion()
        classes, (true, predicted) = result.outcome.classes, np.unravel_index(counts.argmax(), counts.shape)
        total = len(result.open(classes[true], classes[predicted]))
        assert total > 10 and MOST_CASES == 48
        seen = [len(result._shown()["rows"]), result._shown()["more"]]
        result.receive({"do": "more"})
        assert seen == [5, total - 5] and len(result._shown()["rows"]) == 10

    def test_without_its_images_the_numbers_are_there(self, train, place, settings):
        write_digits(place / "short", 40)
        live = train("short lived", data_dir=str(place / "short"))
        (place / "short").rename(place / "gone")
        result = Result(live, settings=settings)
        assert "no such file or folder" in result._about()["no_images"] and result.confusion().sum() == 32
        assert all(row["item"] is None and row["name"] for row in result._mistakes())
        assert "The worst mistakes" in result.static_html()
        with pytest.raises(Refusal, match="no such file or folder"):
            result.receive({"do": "thumbnails", "items": [0]})

    def test_a_page_is_linked_where_it_lies_below_the_notebook(self, tmp_path, monkeypatch):
        page = tmp_path / "notes" / "runs" / "a b" / "report.html"
        page.parent.mkdir(parents=True)
        monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "notes" / "x.ipynb"))
        assert _beside_notebook(page) == "runs/a b/report.html"
        assert _beside_notebook(tmp_path / "elsewhere" / "report.html") == ""
        monkeypatch.delenv("JPY_SESSION_NAME")
        monkeypatch.chdir(tmp_path / "notes" / "runs")
        assert _beside_notebook(page) == "a b/report.html"

    @pytest.mark.slow
    def test_a_report_that_is_not_wanted_any_more_is_stopped(self, settings):
        tiny = Path(__file__).parent / "templates" / "tiny.ipynb"
        made = begin_report(
            str(tiny), {"draws": 1000, "seconds": 0.05}, settings.runs_dir / "unwanted", settings
        )
        until(lambda: made.status.progress > 0)
        made.stop()
        assert made.wait(30).state == "stopped" and "This run was stopped" in made.page.read_text()
        assert made.stop() is None and len(RunFolder.open(made.folder).predictions())

    @pytest.mark.slow
    def test_a_report_that_cannot_be_made_says_why(self, train, place, settings):
        write_digits(place / "soon gone", 40)
        live = train("renamed", data_dir=str(place / "soon gone"))
        (place / "soon gone").rename(place / "gone, too")
        result = Result(live, settings=settings)
        status = result.make_report().wait(60)
        assert status.state == "failed" and "there is no file or folder" in status.error
        assert "there is no file or folder" in result._report()["words"] and not result._report()["going"]
        assert find_report(TEMPLATE, result.parameters, settings.runs_dir) is None
