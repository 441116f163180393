"""Comparisons on toy tasks where transfer helps, hurts or does nothing, and results against scikit-learn."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.evidence.arms import Arm, Headline, in_order
from tljupyter.evidence.comparison import PRESETS, MemorySink, Preset, compare, derived_seed, possible_budgets
from tljupyter.evidence.results import chosen_trial, headline_of, results_from_predictions
from tljupyter.refusals import ImpossibleSplit, Refusal
from tljupyter.runs.parts import Parts

COLUMNS = 20
SMALL = Preset("small", budgets=(5,), draws=4, network_draws=2, tuning_draws=2, trials=3)
HEADLINE = Headline(labels_per_class=5, arm="transfer")


def domain(
    cases=400, classes=2, strength=0.8, direction=None, seed=0, groups=None, test_share=0.6, name="toy"
) -> Domain:
    "Normal vectors; the classes stand apart along some directions."
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(cases) % classes)
    towards = np.eye(classes, COLUMNS) if direction is None else direction
    vectors = rng.normal(size=(cases, COLUMNS)) + 2 * strength * towards[labels]
    side = np.where(np.arange(cases) < cases * (1 - test_share), "train", "test")
    names = np.array([f"{name} {i}" for i in range(cases)])
    return Domain(name, ArrayItems(vectors), labels, tuple("abcdef"[:classes]), groups, side, names)


def matrix(domain: Domain) -> np.ndarray:
    return np.stack([domain.items[i] for i in range(len(domain))])


class Scratch:
    "Logistic regression on the target's labels alone."

    def __init__(self, penalty: float = 1.0):
        self.penalty = penalty

    def features(self, domain: Domain) -> np.ndarray:
        return matrix(domain)

    def fit(self, target, source=None, unlabelled=None):
        self.model_ = LogisticRegression(C=1 / self.penalty, max_iter=1000).fit(
            self.features(target), target.labels
        )
        return self

    def predict_proba(self, domain):
        return self.model_.predict_proba(self.features(domain))


class Transfer(Scratch):
    "The same on the scores of a model of the source domain."

    def __init__(self, source: Domain):
        super().__init__()
        self.source_model = LogisticRegression(max_iter=1000).fit(matrix(source), source.labels)

    def features(self, domain):
        return self.source_model.decision_function(matrix(domain)).reshape(len(domain), -1)


class Majority(Scratch):
    def features(self, domain):
        return np.zeros((len(domain), 1))


def arms(source: Domain, **scratch) -> list[Arm]:
    return [
        Arm("majority", lambda given, seed: Majority()),
        Arm(
            "from scratch",
            lambda given, seed: Scratch(**given),
            trials=({"penalty": 1.0}, {"penalty": 10.0}),
            **scratch,
        ),
        Arm("transfer", lambda given, seed: Transfer(source)),
    ]


# -- the verdicts come out right


def verdict_of(target, source, draws=12):
    comparison = compare(target, arms(source), replace(SMALL, draws=draws), HEADLINE)
    return headline_of(comparison.results())


@pytest.mark.slow
def test_a_related_source_helps():
    entry = verdict_of(domain(), domain(600, seed=1, name="source"))
    assert entry["verdict"] == "helps" and entry["gain"] > 0.05 and entry["needed"] is None


@pytest.mark.slow
@pytest.mark.parametrize("draws", [5, 12])
def test_an_unrelated_source_hurts(draws):
    elsewhere = np.eye(2, COLUMNS, k=10)
    entry = verdict_of(domain(strength=1.2), domain(600, direction=elsewhere, seed=1, name="source"), draws)
    assert entry["verdict"] == "hurts" and entry["gain"] < -0.05


@pytest.mark.slow
def test_a_source_that_adds_nothing_makes_no_difference():
    easy = domain(1000, strength=3.0)
    assert verdict_of(easy, domain(600, strength=3.0, seed=1))["verdict"] == "no difference that matters"


def test_few_cases_and_draws_cannot_tell_and_say_what_would():
    entry = verdict_of(domain(60, strength=1.2), domain(600, strength=0.3, seed=1), draws=3)
    assert entry["verdict"] == "cannot tell" and "instead of" in entry["needed"]


@pytest.mark.slow
def test_three_classes():
    source = domain(900, classes=3, seed=1, name="source")
    results = compare(domain(600, classes=3), arms(source), replace(SMALL, draws=12), HEADLINE).results()
    assert headline_of(results)["verdict"] == "helps"
    assert {row["metric"] for row in results["arms"]}.isdisjoint({"sensitivity_at_90_specificity"})


# -- who sees what


class Spy(Scratch):
    seen: list[tuple[str, set[str], bool]] = []

    def fit(self, target, source=None, unlabelled=None):
        assert source is None and unlabelled is None
        self.seen.append(("fit", set(target.names), bool((target.labels >= 0).all())))
        return super().fit(target)

    def predict_proba(self, domain):
        self.seen.append(("predict", set(domain.names), bool((domain.labels >= 0).any())))
        return super().predict_proba(domain)


def test_the_test_set_is_never_fitted_and_its_labels_are_never_shown():
    Spy.seen = []
    target = domain()
    spies = [
        replace(arm, make=lambda given, seed: Spy(), trials=({}, {"penalty": 2})) for arm in arms(target)
    ]
    compare(target, spies, SMALL, HEADLINE)
    train, test = (set(target.names[target.where(side)]) for side in ("train", "test"))
    fitted = [names for what, names, _ in Spy.seen if what == "fit"]
    assert len(fitted) > 12 and all(names <= train for names in fitted)
    assert any(names == test for what, names, _ in Spy.seen if what == "predict")
    assert not any(labelled for what, _, labelled in Spy.seen if what == "predict")


def test_all_arms_share_draws_and_test_cases_and_networks_get_the_first_few():
    comparison = compare(domain(), arms(domain(seed=1), trains_network=True), SMALL, HEADLINE)
    rows = comparison.predictions
    for (budget, draw), drawn in rows[rows["part"] == "train"].groupby(["labels_per_class", "draw"]):
        per_arm = {arm: tuple(of_arm["case"]) for arm, of_arm in drawn.groupby("arm")}
        assert len(set(per_arm.values())) == 1 and len(next(iter(per_arm.values()))) == 2 * budget
        assert ("from scratch" in per_arm) == (draw < 2)
    assert rows[rows["part"] == "test"].groupby(["draw", "arm"])["case"].agg(tuple).nunique() == 1
    entry = headline_of(comparison.results())
    assert entry["draws"] == 2 and len(entry["values"]) == 2  # paired: what both have


@pytest.mark.slow
def test_draws_of_a_larger_budget_hold_those_of_a_smaller_one():
    comparison = compare(domain(), arms(domain(seed=1)), replace(SMALL, budgets=(5, 10)), HEADLINE)
    train = comparison.predictions.query("part == 'train' and arm == 'transfer'")
    cases = train.groupby(["draw", "labels_per_class"])["case"].agg(set)
    assert all(cases[draw, 5] < cases[draw, 10] for draw in range(4))


def test_patients_are_carried_to_the_results():
    patients = np.array([f"patient {i // 4}" for i in range(400)])
    results = compare(domain(groups=patients), arms(domain(seed=1)), SMALL, HEADLINE).results()
    assert (results["test_cases"], results["test_groups"]) == (240, 60)


# -- tuning


def test_tuning_takes_the_better_trial_on_draws_of_its_own():
    trials = ({"penalty": 1e-6}, {"penalty": 3.0}, {"penalty": 1e6})
    tuned = [
        replace(arm, trials=trials) if arm.name == "from scratch" else arm for arm in arms(domain(seed=1))
    ]
    comparison = compare(domain(), tuned, SMALL, HEADLINE)
    assert comparison.chosen["from scratch", 5] == {"penalty": 3.0}
    rows = comparison.predictions
    assert set(rows.query("arm == 'from scratch' and part != 'tuning'")["trial"]) == {1}
    tuning, train = (
        rows[rows["part"] == part].groupby("draw")["case"].agg(frozenset) for part in ("tuning", "train")
    )
    assert len(tuning) == SMALL.tuning_draws and not set(tuning) & set(train)
    assert set(rows[rows["part"] == "tuning"]["case"]) <= {f"toy {i}" for i in range(160)}
    (entry,) = comparison.results()["tuning"]
    assert (
        entry["chosen"] == 1
        and len(entry["log_loss"]) == 3
        and min(entry["log_loss"]) == entry["log_loss"][1]
    )


def test_a_preset_may_try_only_the_first_trials():
    trials = ({"penalty": 1e6}, {"penalty": 3.0})
    tuned = [
        replace(arm, trials=trials) if arm.name == "from scratch" else arm for arm in arms(domain(seed=1))
    ]
    assert compare(domain(), tuned, replace(SMALL, trials=1), HEADLINE).chosen["from scratch", 5] == trials[0]


def test_a_trial_that_diverges_is_not_chosen_and_one_that_must_be_used_is_refused():
    class Diverging(Scratch):
        def predict_proba(self, domain):
            return super().predict_proba(domain) * (np.nan if self.penalty == 1.0 else 1)

    diverging = [
        replace(arm, make=lambda given, seed: Diverging(**given)) if arm.name == "from scratch" else arm
        for arm in arms(domain(seed=1))
    ]
    comparison = compare(domain(), diverging, SMALL, HEADLINE)
    assert comparison.chosen["from scratch", 5] == {"penalty": 10.0}
    json.dumps(comparison.results(), allow_nan=False)
    with pytest.raises(Refusal, match="from scratch.*not probabilities"):
        compare(domain(), diverging, replace(SMALL, trials=1), HEADLINE)


def test_one_label_a_class_cannot_be_tuned_and_runs_all_the_same():
    headline = replace(HEADLINE, labels_per_class=1)
    comparison = compare(domain(), arms(domain(seed=1)), replace(SMALL, budgets=(1,)), headline)
    assert comparison.chosen["from scratch", 1] == {"penalty": 1.0}
    assert comparison.results()["tuning"] == []


@pytest.mark.slow
def test_own_out_of_fold_scores_are_used_for_tuning_and_threshold():
    class Leaning(Scratch):
        "Ranks well and says 'b' to everything; knows so from its own cross-validation."

        fits = 0

        def fit(self, target, source=None, unlabelled=None):
            type(self).fits += 1
            super().fit(target)
            self.out_of_fold_ = self.predict_proba(target)
            return self

        def predict_proba(self, domain):
            b = 0.8 + 0.2 * super().predict_proba(domain)[:, 1]
            return np.stack([1 - b, b], axis=1)

    leaning = [
        replace(arm, make=lambda given, seed: Leaning(**given)) if arm.name == "from scratch" else arm
        for arm in arms(domain(seed=1))
    ]
    headline = replace(HEADLINE, labels_per_class=20)
    comparison = compare(domain(strength=1.5), leaning, replace(SMALL, budgets=(5, 20)), headline)
    assert Leaning.fits == 2 * (2 * 2 + 4)  # budgets x (tuning draws x trials + draws): no folds on top
    rows = comparison.predictions.query("arm == 'from scratch' and part == 'test'")
    assert set(rows.query("labels_per_class == 5")["threshold"]) == {0.5}
    assert rows.query("labels_per_class == 20")["threshold"].min() > 0.8
    scores = {
        (r["arm"], r["labels_per_class"]): r["mean"]
        for r in comparison.results()["arms"]
        if r["metric"] == "balanced_accuracy"
    }
    assert scores["from scratch", 5] == 0.5 and scores["from scratch", 20] > 0.75


# -- resuming and repeating


class Killed(Exception):
    pass


class KilledSink(MemorySink):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def put(self, key, rows):
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().put(key, rows)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_a_killed_comparison_resumes_without_training_again(after):
    target, fits = domain(), []

    class Counted(Scratch):
        def fit(self, target, source=None, unlabelled=None):
            fits.append(1)
            return super().fit(target)

    counted = [replace(arm, make=lambda given, seed: Counted()) for arm in arms(target)]
    whole = compare(target, counted, SMALL, HEADLINE)
    in_one_go, sink = len(fits), KilledSink(after)
    fits.clear()
    with pytest.raises(Killed):
        compare(target, counted, SMALL, HEADLINE, sink=sink)
    sink.left = -1
    resumed = compare(target, counted, SMALL, HEADLINE, sink=sink)
    pd.testing.assert_frame_equal(whole.predictions, resumed.predictions)
    assert whole.results() == resumed.results()
    piece = (
        2 * 4
    )  # the most that is lost, a tuning: two trials, each fitted on the whole draw and in three folds
    assert in_one_go < len(fits) <= in_one_go + piece


@pytest.mark.slow
def test_the_same_seed_repeats_and_another_draws_others():
    target, made = domain(), arms(domain(seed=1))
    first, again = (compare(target, made, SMALL, HEADLINE, seed=3).predictions for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = compare(target, made, SMALL, HEADLINE, seed=4).predictions
    assert not first.query("part == 'train'")["case"].equals(other.query("part == 'train'")["case"])


def test_seeds_of_different_purposes_differ():
    seeds = [
        derived_seed(s, what, n)
        for s in range(5)
        for what in ("draw", "tuning draw", "estimator")
        for n in range(30)
    ]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**31


def test_progress_counts_up_to_all_pieces_and_names_them():
    told = []
    compare(domain(), arms(domain(seed=1)), SMALL, HEADLINE, progress=lambda *what: told.append(what))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert told[-1][0] == told[-1][1] == 2 + 3 * 4  # tuning draws of one arm, three arms on four draws
    assert told[0][2] == "from scratch, 5 labels a class, tuning 2 trials"
    assert told[2][2] == "majority, 5 labels a class, draw 1 of 4"


# -- refused before anything runs


def refused(match, target=None, made=None, preset=SMALL, headline=HEADLINE, kind=Refusal, **given):
    def make(given, seed):
        raise AssertionError("something ran")

    target = domain() if target is None else target
    made = [replace(arm, make=make) for arm in (arms(target) if made is None else made)]
    with pytest.raises(kind, match=match):
        compare(target, made, preset, headline, **given)


def test_impossible_comparisons_are_refused_up_front():
    target = domain()
    refused('did you mean "transfer"'.capitalize()[1:], headline=replace(HEADLINE, arm="transfr"))
    refused("from scratch", made=arms(target)[2:])
    refused("share a name", made=arms(target) + arms(target)[:1])
    refused("labels a class; the budgets are", headline=replace(HEADLINE, labels_per_class=7))
    refused(
        "two classes",
        target=domain(classes=3),
        headline=replace(HEADLINE, metric="sensitivity_at_90_specificity"),
    )
    refused("1 label a class or more", budgets=(0, 5))
    refused("not split", target=replace(target, splits=None))
    refused(
        'no labelled test item of class "b"',
        target=target.take(np.flatnonzero((target.splits == "train") | (target.labels == 0))),
    )
    refused('two test items are called "x"', target=replace(target, names=np.array(["x"] * 400)))
    refused("several findings", target=replace(target, labels=np.zeros((400, 2), dtype=np.int8)))
    refused("numbers", target=replace(target, labels=np.linspace(0, 1, 400)))


def test_budgets_that_the_rarest_class_cannot_give():
    target = domain(100)  # 40 to draw from
    most = min(target.take(target.where("train")).counts().values())
    kept, notes = possible_budgets(target, (5, 20, 50), HEADLINE)
    assert kept == tuple(k for k in (5, 20) if k <= most) and "50 labels a class left out" in notes[-1]
    refused(
        f"At most {most} labels",
        target=target,
        budgets=(5, 50),
        headline=replace(HEADLINE, labels_per_class=50),
        kind=ImpossibleSplit,
    )
    comparison = compare(target, arms(target), replace(SMALL, budgets=(5, 50)), HEADLINE)
    assert set(comparison.predictions["labels_per_class"]) == {5} and comparison.notes == notes[-1:]


def test_arms_headlines_and_presets_check_themselves():
    with pytest.raises(Refusal, match="needs a name"):
        Arm(" ", lambda given, seed: Scratch())
    with pytest.raises(Refusal, match="no trials"):
        Arm("x", lambda given, seed: Scratch(), trials=())
    with pytest.raises(Refusal, match="better when smaller"):
        Headline(labels_per_class=5, arm="transfer", metric="log_loss")
    with pytest.raises(Refusal, match="with itself"):
        Headline(labels_per_class=5, arm="from scratch")
    with pytest.raises(Refusal, match="at least one"):
        Preset("none", (), 1, 1, 1, 1)
    assert in_order(PRESETS) == sorted(PRESETS)


def test_wrong_shapes_name_the_arm():
    class OneColumn(Scratch):
        def predict_proba(self, domain):
            return super().predict_proba(domain)[:, :1]

    one = [replace(arm, make=lambda given, seed: OneColumn()) for arm in arms(domain(seed=1))]
    with pytest.raises(Refusal, match='"from scratch" gave probabilities of shape'):
        compare(domain(), one, SMALL, HEADLINE)


# -- results


@pytest.fixture(scope="module")
def comparison():
    return compare(domain(), arms(domain(seed=1)), replace(SMALL, budgets=(5, 10), draws=10), HEADLINE)


@pytest.mark.slow
def test_means_and_gains_are_those_of_scikit_learn(comparison):
    rows, results = comparison.predictions, comparison.results()
    theirs = {
        "balanced_accuracy": lambda f: sk.balanced_accuracy_score(f["label"], f["predicted"]),
        "accuracy": lambda f: sk.accuracy_score(f["label"], f["predicted"]),
        "auc": lambda f: sk.roc_auc_score(f["label"], f["p_1"]),
        "log_loss": lambda f: sk.log_loss(f["label"], f[["p_0", "p_1"]]),
        "brier": lambda f: sk.brier_score_loss(f["label"], f["p_1"]),
    }
    test, train = rows[rows["part"] == "test"], rows[rows["part"] == "train"]
    keys = ["labels_per_class", "arm", "draw"]
    scores = {
        name: pd.Series({k: metric(f) for k, f in test.groupby(keys)}) for name, metric in theirs.items()
    }
    own = pd.Series({k: theirs["balanced_accuracy"](f) for k, f in train.groupby(keys)})
    scores["overfitting_gap"] = own - scores["balanced_accuracy"]
    seen = 0
    for entry in results["arms"]:
        if entry["metric"] in scores:
            expected = scores[entry["metric"]].loc[entry["labels_per_class"], entry["arm"]]
            np.testing.assert_allclose(entry["values"], expected)
            assert (
                entry["low"] <= entry["mean"] == pytest.approx(expected.mean())
                and entry["mean"] <= entry["high"]
            )
            seen += 1
    assert seen == 2 * 3 * 6
    for entry in results["comparisons"]:
        candidate, baseline = (
            scores[entry["metric"]].loc[entry["labels_per_class"], entry[arm]] for arm in ("arm", "baseline")
        )
        assert entry["gain"] == pytest.approx((candidate - baseline).mean())
        assert entry["low"] <= entry["gain"] <= entry["high"]


def test_results_have_the_documented_form(comparison):
    results = json.loads(json.dumps(comparison.results(), allow_nan=False))
    assert results["schema"] == 1 and results["classes"] == ["a", "b"] and results["margin"] == 0.02
    gains = {(e["arm"], e["baseline"], e["metric"], e["labels_per_class"]) for e in results["comparisons"]}
    pairs = {("majority", "from scratch"), ("transfer", "from scratch"), ("transfer", "majority")}
    metrics = ("balanced_accuracy", "accuracy", "auc")
    assert gains == {(*pair, metric, budget) for pair in pairs for metric in metrics for budget in (5, 10)}
    for entry in results["comparisons"]:
        assert entry["verdict"] in ("helps", "hurts", "no difference that matters", "cannot tell")
        assert (entry["needed"] is None) == (entry["verdict"] != "cannot tell")
        assert 0 < entry["p_value"] <= entry["p_holm"] <= 1
    (headline,) = [entry for entry in results["comparisons"] if not entry["exploratory"]]
    assert {k: headline[k] for k in results["headline"]} == results["headline"]
    assert headline["p_holm"] == headline["p_value"]


@pytest.mark.slow
def test_results_follow_from_the_saved_table_in_any_order(comparison, tmp_path):
    comparison.predictions.sample(frac=1, random_state=1).to_parquet(tmp_path / "predictions.parquet")
    read = pd.read_parquet(tmp_path / "predictions.parquet")
    assert results_from_predictions(read, comparison.classes, HEADLINE) == comparison.results()
    without_tuning = read[read["part"] == "test"].drop(columns="trial")
    fewer = results_from_predictions(without_tuning, comparison.classes, comparison.results()["headline"])
    assert fewer["comparisons"] == comparison.results()["comparisons"] and fewer["tuning"] == []


@pytest.mark.slow
def test_another_margin_changes_words_not_numbers(comparison):
    strict, lax = (
        results_from_predictions(comparison.predictions, comparison.classes, HEADLINE, margin=m)
        for m in (0.0, 0.9)
    )
    numbers = [[(e["gain"], e["low"], e["high"]) for e in r["comparisons"]] for r in (strict, lax)]
    assert numbers[0] == numbers[1]
    assert {e["verdict"] for e in lax["comparisons"]} <= {"helps", "hurts", "no difference that matters"}
    assert "no difference that matters" not in {e["verdict"] for e in strict["comparisons"]}


def test_one_draw_gets_no_verdict(comparison):
    rows = comparison.predictions
    results = results_from_predictions(rows[rows["draw"] == 0], comparison.classes, HEADLINE)
    assert {e["verdict"] for e in results["comparisons"]} == {"cannot tell"}
    entry = headline_of(results)
    assert (
        entry["p_value"] is None and "One draw" in entry["needed"] and "test cases only" in entry["speaks_of"]
    )
    json.dumps(results, allow_nan=False)


def test_a_comparison_cut_short_reports_what_it_has(comparison):
    rows = comparison.predictions
    early = rows[
        (rows["labels_per_class"] == 5)
        & ((rows["draw"] < 2) | (rows["arm"] == "transfer"))
        & (rows["draw"] >= 0)
    ]
    assert headline_of(results_from_predictions(early, comparison.classes, HEADLINE))["draws"] == 2
    apart = early[(early["arm"] != "from scratch") | (early["draw"] == 0)]
    apart = apart[(apart["arm"] != "transfer") | (apart["draw"] == 5)]
    assert headline_of(results_from_predictions(apart, comparison.classes, HEADLINE)) is None


def test_tables_that_are_no_comparison_are_refused(comparison):
    rows, classes = comparison.predictions, comparison.classes
    test = rows["part"] == "test"
    first = test & (rows["draw"] == 0) & (rows["arm"] == "transfer")
    with pytest.raises(Refusal, match="p_2"):
        results_from_predictions(rows, ("a", "b", "c"), HEADLINE)
    with pytest.raises(Refusal, match="no rows"):
        results_from_predictions(rows[~test], classes, HEADLINE)
    with pytest.raises(Refusal, match="same cases"):
        results_from_predictions(rows.drop(rows.index[first][0]), classes, HEADLINE)
    with pytest.raises(Refusal, match="names must differ"):
        results_from_predictions(rows.assign(case="x"), classes, HEADLINE)
    with pytest.raises(Refusal, match="one class"):
        results_from_predictions(rows[rows["label"] == 0], classes, HEADLINE)
    with pytest.raises(Refusal, match="not finite"):
        results_from_predictions(rows.assign(p_0=np.nan), classes, HEADLINE)
    with pytest.raises(Refusal, match="there are majority, from scratch, transfer"):
        results_from_predictions(rows, classes, replace(HEADLINE, arm="fine-tuned"))


def test_the_earlier_of_equal_trials_is_chosen(comparison):
    tuning = comparison.predictions.query("part == 'tuning' and labels_per_class == 5")
    twice = pd.concat([tuning[tuning["trial"] == 0].assign(trial=t) for t in (0, 1)])
    assert chosen_trial(twice) == 0


class Noting(Scratch):
    "Says something while it is fitted, another thing at every seed."

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def fit(self, target, source=None, unlabelled=None):
        super().fit(target, source, unlabelled)
        self.notes_ = ("the source is empty", f"fitted with {len(target)} labels", f"seed {self.seed}")
        return self


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_what_estimators_note_reaches_the_reader_and_survives_the_process(kept, tmp_path):
    sink = MemorySink() if kept == "memory" else Parts(tmp_path / "parts")
    noting = Arm("noting", lambda trial, seed: Noting(seed))
    target, made = domain(), [*arms(domain()), noting]
    for _ in range(2):  # the second time nothing is fitted: all comes from the sink
        notes = compare(target, made, SMALL, HEADLINE, sink=sink).notes
        assert notes[:2] == (
            "noting: the source is empty",
            f"noting: fitted with {2 * HEADLINE.labels_per_class} labels",
        )
        assert notes[2].endswith("more like these") and len(notes) == 3
