"""Runs beside each other: paired where they saw the same, corrected where they are read together, refused where they are of something else."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tljupyter.cli import main
from tljupyter.evidence.results import results_from_predictions
from tljupyter.figures.leaderboard import (
    as_record,
    histories,
    leaderboard,
    levels_plot,
    parameter_table,
    run_letter,
    standing,
)
from tljupyter.figures.run_comparison import (
    compare_found,
    compare_runs,
    find_outcomes,
    gain_between,
    shared_draws,
)
from tljupyter.refusals import Refusal
from tljupyter.reports.execute import run_report
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.outcome import Outcome
from tljupyter.settings import Settings

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ("ill", "well")
METRIC = "balanced_accuracy"


def predictions(skill: float, seed: int, labels: int, draws: int, draw_seed: int, cases: int) -> pd.DataFrame:
    "Invented predictions of two arms: the labels that were drawn, and what was said of the test cases."
    rng, tables = np.random.default_rng(seed), []
    truth = np.arange(cases) % 2
    for draw in range(draws):
        order = np.random.default_rng([draw_seed, draw]).permutation(200)
        drawn = pd.DataFrame({"case": [f"train {i}" for i in order[: 2 * labels]], "part": "train"})
        drawn["label"] = np.arange(len(drawn)) % 2
        test = pd.DataFrame({"case": [f"test {i}" for i in range(cases)], "part": "test", "label": truth})
        for arm, right in (("from scratch", 0.6), ("fine-tuned", skill)):
            both = pd.concat([drawn, test], ignore_index=True).assign(
                arm=arm, draw=draw, labels_per_class=labels
            )
            both["p_1"] = (
                np.where(rng.random(len(both)) < right, both["label"], 1 - both["label"]) * 0.8 + 0.1
            )
            tables.append(both)
    rows = pd.concat(tables, ignore_index=True)
    return rows.assign(
        p_0=1 - rows["p_1"], predicted=(rows["p_1"] > 0.5).astype(int), trial=0, group="", threshold=0.5
    )


@pytest.fixture
def make(tmp_path):
    "Makes a run folder, and says what it gave."

    def made(name: str, skill: float = 0.8, seed: int = 0, **changes) -> Outcome:
        given = {"draws": 10, "budgets": [5], "draw_seed": 0, "cases": 120} | changes
        tables = [
            predictions(skill, seed + labels, labels, given["draws"], given["draw_seed"], given["cases"])
            for labels in given["budgets"]
        ]
        rows = pd.concat(tables, ignore_index=True)
        headline = {"metric": METRIC, "labels_per_class": given["budgets"][0], "arm": "fine-tuned"}
        classes = given.pop("classes", CLASSES)
        digest = given.pop("digest", "d0")
        results = results_from_predictions(
            rows, classes, headline | {"baseline": "from scratch"}, replicates=300
        )
        with RunFolder.create(tmp_path / "runs" / name, "lesson", {"skill": skill, **given}) as run:
            for (labels, draw, arm), part in rows.groupby(["labels_per_class", "draw", "arm"]):
                run.put((int(labels), int(draw), str(arm)), part)
            run.write("results.json", results | {"data": {"films": digest}})
        return Outcome(run)

    return made


class TestPairing:
    def test_runs_of_the_same_draws_get_an_interval(self, make):
        one, other = make("one", 0.75, seed=1), make("other", 0.9, seed=2)
        assert shared_draws(one, other) == list(range(10))
        metric, rows = compare_found([one, other])
        gain = rows[1].against
        assert metric == METRIC and gain["draws"] == 10 and rows[1].between == "▲ better"
        assert gain["gain"] == pytest.approx(rows[1].level["mean"] - rows[0].level["mean"])
        assert 0 < gain["low"] < gain["gain"] < gain["high"] and gain["p_holm"] == gain["p_value"]
        by_draw = np.subtract(rows[1].level["values"], rows[0].level["values"])
        assert gain["values"] == pytest.approx(by_draw.tolist())
        back = compare_runs(other, [one], METRIC)[1]
        assert back.between == "▼ worse" and back.against["gain"] == pytest.approx(-gain["gain"])

    def test_other_draws_are_said_to_be_others(self, make):
        one, other = make("one", 0.6, seed=1), make("other", 0.95, seed=2, draw_seed=7)
        assert shared_draws(one, other) == []
        row = compare_runs(one, [other], METRIC)[1]
        assert row.between == "◆ cannot tell: other draws" and row.against["p_holm"] is None
        assert (row.against["low"], row.against["high"]) == (None, None)
        assert row.against["gain"] == pytest.approx(row.level["mean"] - one_mean(one))
        assert "same seed" in row.against["needed"]

    def test_fewer_draws_pair_those_that_both_have(self, make):
        one, other = make("one", seed=1), make("other", seed=2, draws=4)
        assert gain_between(one, other, METRIC)["draws"] == 4

    def test_a_smaller_budget_inside_a_larger_one_is_the_same_draw(self, make):
        few, many = make("few", 0.7, seed=1), make("many", 0.9, seed=2, budgets=[20])
        assert shared_draws(few, many) == list(range(10))
        assert compare_runs(few, [many], METRIC)[1].between == "▲ better"

    def test_without_a_word_on_what_was_drawn_nothing_is_paired(self, make):
        one, other = make("one", seed=1), make("other", seed=2)
        other.predictions = other.predictions[other.predictions["part"] == "test"]
        assert compare_runs(one, [other], METRIC)[1].between == "◆ cannot tell: other draws"


def one_mean(outcome: Outcome) -> float:
    return next(
        row["mean"]
        for row in outcome.results["arms"]
        if (row["arm"], row["metric"]) == ("fine-tuned", METRIC)
    )


class TestReadTogether:
    @pytest.mark.slow
    def test_holm_is_over_all_rows_and_decides_the_word(self, make):
        first = make("first", 0.75, seed=1)
        others = [make(f"run {i}", 0.75 + 0.05 * i, seed=10 * i) for i in range(4)]
        rows = compare_runs(first, others, METRIC)[1:]
        raw = np.array([row.against["p_value"] for row in rows])
        expected, worst = {}, 0.0
        for step, at in enumerate(np.argsort(raw)):
            worst = max(worst, min(1.0, raw[at] * (len(raw) - step)))
            expected[int(at)] = worst
        for at, row in enumerate(rows):
            assert row.against["p_holm"] == pytest.approx(expected[at])
            assert (row.between[0] in "▲▼") == (row.against["p_holm"] < 0.05)

    @pytest.mark.slow
    def test_what_does_not_survive_is_open(self, make):
        first = make("first", 0.75, seed=1)
        alone, rest = (
            make("slightly", 0.785, seed=41),
            [make(f"same {i}", 0.75, seed=50 + i) for i in range(9)],
        )
        row = compare_runs(first, [alone], METRIC)[1]
        assert row.between == "▲ better" and 0.005 < row.against["p_value"] < 0.05
        row = compare_runs(first, [alone, *rest], METRIC)[1]
        assert row.between == "◆ cannot tell: not once corrected for 10 rows read together"
        assert row.against["verdict"] == "cannot tell" and row.against["p_holm"] >= 0.05


class TestWhatCannotBe:
    @pytest.mark.slow
    def test_other_tasks_and_data_keep_their_row_with_the_reason(self, make):
        outcomes = [
            make("first", 0.7),
            make("good", 0.8, seed=3),
            make("other classes", classes=("cat", "dog")),
            make("fewer cases", cases=80),
            make("other data", digest="d1"),
        ]
        _, rows = compare_found(outcomes)
        assert [row.reason.split(":")[0] for row in rows] == [
            "", "", "other classes", "another test set", "other data",
        ]  # fmt: skip
        assert standing(rows)[:2] == [1, 0] and all(not row.against for row in rows[2:])
        page = leaderboard(rows, METRIC, 0.02)
        assert page.count("✕ not comparable</") == 3 and "E: ✕ not comparable: other data" in page

    def test_nothing_comparable_is_refused_with_every_reason(self, make):
        outcomes = [make("first"), make("other", digest="d1"), make("third", cases=80)]
        with pytest.raises(
            Refusal, match=r"No run can be compared with first:\nother: other data.*\nthird: another"
        ):
            compare_found(outcomes)

    def test_a_run_without_results_cannot_be_first_but_may_follow(self, make, tmp_path):
        going = Outcome(RunFolder.create(tmp_path / "runs" / "going", "lesson"))
        good = [make("first"), make("second", seed=4)]
        with pytest.raises(Refusal, match="going is queued and has no results"):
            compare_found([going, *good])
        assert compare_found([*good, going])[1][2].reason == "nothing was tested in going"

    @pytest.mark.parametrize(
        ("metric", "said"),
        [("log_loss", "better when smaller"), ("acuracy", 'Did you mean "accuracy"')],
    )
    def test_a_metric_that_gives_no_gain_is_refused(self, make, metric, said):
        with pytest.raises(Refusal, match=said):
            compare_found([make("first"), make("second")], metric)

    def test_names_that_mean_no_two_runs_are_refused(self, make, tmp_path):
        runs = tmp_path / "runs"
        make("first"), make("second")
        for names, said in (
            (["first"], "at least two"),
            (["first"] * 101, "at most 100"),
            (["first", str(runs / "first")], "first is given twice"),
            (["first", "secnd"], 'Did you mean "second"'),
        ):
            with pytest.raises(Refusal, match=said):
                find_outcomes(names, runs)
        (runs / "second" / "results.json").write_text('{"classes": [')
        with pytest.raises(Refusal, match="second: damaged, its results cannot be read"):
            find_outcomes(["first", "second"], runs)
        (runs / "second" / "results.json").write_text(json.dumps(Outcome(runs / "first").results))
        (runs / "second" / "predictions.parquet").write_bytes(b"PAR1 torn")
        with pytest.raises(Refusal, match="second: damaged"):
            find_outcomes(["first", "second"], runs)


class TestFaces:
    def test_names_and_values_of_others_stay_text(self, make):
        outcomes = [make("first"), make(HOSTILE, 0.85, seed=2, note=HOSTILE)]
        outcomes[0].parameters["note"] = "plain"
        _, rows = compare_found(outcomes)
        for face in (leaderboard(rows, METRIC, 0.02), parameter_table(outcomes)):
            assert HOSTILE not in face and "&lt;img" in face
        assert '<td class="tl-words">plain</td>' in parameter_table(outcomes)
        assert "draws" not in parameter_table(outcomes)  # the same in both

    def test_runs_of_the_same_parameters_say_so(self, make):
        assert "the same parameters" in parameter_table([make("one"), make("two", seed=5)])

    @pytest.mark.slow
    def test_curves_of_all_budgets_lie_on_the_same_axes(self, make):
        outcomes = [make("first", budgets=[2, 5, 10]), make("second", 0.9, budgets=[2, 5])]
        picture = levels_plot(outcomes, METRIC)
        assert "of every run" in picture.alt and "A: 0." in picture.alt and "B: 0." in picture.alt
        told = [label.get_text() for axes in picture.figure().axes for label in axes.texts]
        assert {"A", "B"} <= set(told)
        assert "B:" not in levels_plot([outcomes[0], None], METRIC).alt

    def test_epochs_are_those_of_the_declared_arm(self, make):
        outcomes = [make("first"), make("second", seed=3)]
        for epoch in range(3):
            row = {"event": "epoch", "epoch": epoch, "step": epoch, "loss": 1 / (1 + epoch)}
            outcomes[1].run.log_metrics({"arm": "from scratch", **row, "loss": 9.0})
            outcomes[1].run.log_metrics({"arm": "fine-tuned", **row})
        told = histories(outcomes)
        assert list(told) == ["B"] and [row["loss"] for row in told["B"]] == [1.0, 0.5, 1 / 3]

    def test_letters_go_on_after_z(self):
        assert len({run_letter(at) for at in range(1000)}) == 1000 and run_letter(701) == "ZZ"


class TestCommand:
    @pytest.mark.slow
    def test_it_says_what_json_says(self, make, tmp_path, capsys):
        make("first", 0.7, seed=1), make("better", 0.9, seed=2), make("other", digest="d1")
        assert main(["compare", "first", "better", str(tmp_path / "runs" / "other")]) == 0
        text = capsys.readouterr().out
        assert "▲ better" in text and "B differs from A: skill 0.7 → 0.9" in text
        assert text.index("better") < text.index("first") and "C: other data" in text
        assert text.splitlines()[-1] == "▲ B: better than A"
        assert main(["compare", "first", "better", "other", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [row["letter"] for row in told["runs"]] == ["B", "A", "C"] and told["metric"] == METRIC
        assert told["runs"][0]["against_first"]["verdict"] == "helps" and told["runs"][2]["not_comparable"]

    def test_bad_input_is_2(self, make, capsys):
        make("first")
        assert main(["compare", "first"]) == 2 and main(["compare", "first", "nothing"]) == 2
        assert "needs at least two runs" in capsys.readouterr().err
        assert main(["compare", "first", "nothing", "--json"]) == 2
        assert "is no run" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow
def test_the_template_repeats_what_the_command_says(make, tmp_path):
    outcomes = [make("first", 0.7, budgets=[5, 10]), make(HOSTILE, 0.9, seed=2), make("draws", draw_seed=3)]
    for epoch in range(4):
        row = {"event": "epoch", "epoch": epoch, "step": epoch, "loss": 1 / (1 + epoch)}
        outcomes[0].run.log_metrics({"arm": "fine-tuned", **row})
    runs = tmp_path / "runs"
    settings = Settings(runs_dir=runs, cache_dir=tmp_path / "cache")
    names = [str(one.run.path) for one in outcomes]
    made = run_report("compare_runs", {"runs": names}, tmp_path / "compared", settings)
    assert made.ok, made.status.error
    told = made.folder.joinpath("comparison.json")
    metric, rows = compare_found(outcomes)
    ours = json.loads(json.dumps([as_record(row, at) for at, row in enumerate(rows)]))
    assert json.loads(told.read_text()) == {"schema": 1, "metric": metric, "runs": ours}
    page = Path(made.html).read_text()
    assert page.index("B: better than A") < page.index("What was asked") < page.index("How they learned")
    assert "cannot tell: other draws" in page and HOSTILE not in page
    assert page.count('class="tl-picture"') == 2 and "tljupyter report compare_runs" in page
    with pytest.raises(Refusal, match="at least two"):
        run_report("compare_runs", {"runs": names[:1]}, tmp_path / "one", settings)
