"""Metrics against scikit-learn, and intervals against simulated studies whose true gain is known."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from tljupyter.measures.intervals import (
    HeldOut,
    Interval,
    corrected_resampled_interval,
    interval_of_gain,
    interval_of_mean,
    resampled_scores,
)
from tljupyter.measures.metrics import (
    METRICS,
    accuracy,
    adaptive_calibration_error,
    auc,
    balanced_accuracy,
    brier,
    find_metric,
    log_loss,
    sensitivity_at_specificity,
)
from tljupyter.measures.thresholds import decide, threshold_from_scores
from tljupyter.measures.verdicts import holm, needed, verdict
from tljupyter.refusals import Refusal


def predictions(classes: int, seed: int, cases: int = 90):
    "Labels, probabilities with many ties, and weights."
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, cases)
    raw = rng.integers(1, 6, (cases, classes)) + 2 * np.eye(classes)[labels] * rng.integers(0, 2, (cases, 1))
    return labels, raw / raw.sum(1, keepdims=True), rng.exponential(size=(4, cases))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn_under_any_weights(classes, seed):
    labels, probabilities, weights = predictions(classes, seed)
    decided, ranked = probabilities.argmax(1), probabilities[:, 1] if classes == 2 else probabilities
    theirs = {
        "balanced_accuracy": lambda w: sk.balanced_accuracy_score(labels, decided, sample_weight=w),
        "accuracy": lambda w: sk.accuracy_score(labels, decided, sample_weight=w),
        "auc": lambda w: sk.roc_auc_score(labels, ranked, sample_weight=w, multi_class="ovr"),
        "log_loss": lambda w: sk.log_loss(labels, probabilities, sample_weight=w, labels=range(classes)),
    }
    for name, reference in theirs.items():
        ours = METRICS[name].score(labels, decided, probabilities, weights)
        np.testing.assert_allclose(ours, [reference(w) for w in weights], rtol=1e-9, err_msg=name)
        assert METRICS[name].score(labels, decided, probabilities, None) == pytest.approx(reference(None))
    if classes == 2:
        reference = [sk.brier_score_loss(labels, probabilities[:, 1], sample_weight=w) for w in weights]
        np.testing.assert_allclose(brier(labels, probabilities, weights), reference)


def test_brier_of_many_classes_is_the_squared_distance_from_the_truth():
    assert brier([0, 2], np.array([[1.0, 0, 0], [0, 1.0, 0]])) == pytest.approx((0 + 2) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_sensitivity_is_the_best_point_of_the_roc_curve_above_the_specificity(seed):
    labels, probabilities, weights = predictions(2, seed)
    found = sensitivity_at_specificity(labels, probabilities, weights)
    for value, w in zip(found, weights, strict=True):
        false, true, _ = sk.roc_curve(labels, probabilities[:, 1], sample_weight=w, drop_intermediate=False)
        assert value == pytest.approx(true[false <= 0.1 + 1e-9].max())


def test_calibration_error_bin_by_bin():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=100)
    labels = rng.integers(0, 2, 100)
    bins = np.array_split(np.argsort(p), 10)
    expected = np.mean([abs(p[rows].mean() - labels[rows].mean()) for rows in bins])
    assert adaptive_calibration_error(labels, np.stack([1 - p, p], 1)) == pytest.approx(expected)


def test_a_constant_and_right_probability_is_calibrated():
    "Equal probabilities share a bin: cut apart, they would look badly calibrated by chance."
    assert adaptive_calibration_error([0, 1] * 20, np.full((40, 2), 0.5)) == 0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_block_of_weights_gives_what_single_rows_give(metric):
    labels, probabilities, weights = predictions(2, 1)
    arguments = labels, probabilities.argmax(1), probabilities
    block = metric.score(*arguments, weights)
    assert block.shape == (4,)
    np.testing.assert_allclose(block, [metric.score(*arguments, row) for row in weights])
    repeated = np.random.default_rng(0).integers(
        0, 3, 90
    )  # a whole number of copies is the same as copying the case
    copies = np.repeat(np.arange(90), repeated)
    if metric.name != "adaptive_calibration_error":  # its bins hold equally many cases, so copies move them
        expected = metric.score(*(a[copies] for a in arguments), None)
        assert metric.score(*arguments, repeated) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (np.eye(3, dtype=int), "multi-label"),
        (np.array([0.5, 1.5]), "regression"),
        (np.array([0, -1]), "unlabelled"),
    ],
)
def test_other_targets_are_refused_by_name(labels, word):
    for metric in (accuracy, balanced_accuracy):
        with pytest.raises(Refusal, match=word):
            metric(labels, np.zeros(len(labels)))
    for metric in (auc, log_loss, brier, adaptive_calibration_error, sensitivity_at_specificity):
        with pytest.raises(Refusal, match=word):
            metric(labels, np.full((len(labels), 2), 0.5))


def test_unknown_metrics_and_wrong_shapes_are_refused():
    with pytest.raises(Refusal, match="balanced_accuracy"):
        find_metric("balanced_acuracy")
    with pytest.raises(Refusal, match="3 weights"):
        accuracy([0, 1], [0, 1], np.ones(3))
    with pytest.raises(Refusal, match="two classes"):
        sensitivity_at_specificity([0, 1, 2], np.full((3, 3), 1 / 3))
    with pytest.raises(Refusal, match="two classes"):
        decide(np.full((3, 3), 1 / 3), 0.4)


# -- thresholds


def test_too_few_labels_or_useless_scores_leave_the_cut_at_one_half():
    rng = np.random.default_rng(0)
    assert threshold_from_scores([0] * 9 + [1] * 30, rng.uniform(0.6, 0.9, 39)) == 0.5
    assert threshold_from_scores([0, 1] * 20, np.full(40, 0.9)) == 0.5
    labels = np.array([0, 1] * 20)
    assert threshold_from_scores(labels, 0.9 - 0.2 * labels) == 0.5  # ranked backwards


@pytest.mark.parametrize("extreme", [1e-3, 0.0])
def test_saturated_scores_are_cut_between_the_classes(extreme):
    labels = np.repeat([0, 1], 15)
    scores = np.where(labels == 1, 1 - extreme, np.linspace(0.6, 0.9, 30))
    cut = threshold_from_scores(labels, scores)
    assert 0.7 < cut < 1
    assert balanced_accuracy(labels, decide(np.stack([1 - scores, scores], 1), cut)) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("lean", [-2.0, 0.0, 1.0, 2.0])
def test_threshold_is_never_much_worse_than_one_half_and_repairs_a_lean(lean):
    rng = np.random.default_rng(3)

    def world(per_class):
        labels = np.repeat([0, 1], per_class)
        spread = np.where(labels == 1, 2.0, 0.7)  # unequal, so that the rule's own model is wrong
        return labels, 1 / (1 + np.exp(-(rng.normal(2.5 * labels - 1.2, spread) + lean)))

    unseen, scores = world(4000)
    at_half = balanced_accuracy(unseen, scores > 0.5)
    found = np.mean(
        [balanced_accuracy(unseen, scores > threshold_from_scores(*world(10))) for _ in range(60)]
    )
    assert found > at_half - 0.01
    assert abs(lean) < 2 or found > at_half + 0.04


# -- intervals: simulated studies


def arm(rng, labels, difficulty, draws, strength, luck):
    "What one arm says in every draw: its strength, the luck of the draw, hard and easy cases, and chance."
    cases = len(labels)
    lucky, lean = rng.normal(0, luck, (2, draws, 1))
    margin = strength + lucky + difficulty + rng.normal(0, 0.5, (draws, cases))
    ill = 1 / (1 + np.exp(-(np.where(labels == 1, margin, -margin) + lean)))
    return (ill > 0.5).astype(int), np.stack([1 - ill, ill], axis=2)


def study(rng, metric, draws, strengths, lucks, people=120, films=1, replicates=300, grouped=True):
    "One simulated comparison of two arms, as an interval of the gain."
    person = np.repeat(np.arange(people), films)
    labels = person % 2
    shared = rng.normal(0, 0.7, people)[person]
    held_out = HeldOut(labels, person if grouped else np.arange(len(person)))
    weights = held_out.weights(replicates, int(rng.integers(1 << 31)))
    scored = [
        resampled_scores(
            metric,
            held_out,
            *arm(rng, labels, shared + rng.normal(0, 0.7, people)[person], draws, s, luck),
            weights,
        )
        for s, luck in zip(strengths, lucks, strict=True)
    ]
    return interval_of_gain(*scored)


def truth(strengths, lucks):
    "The true gain in balanced accuracy: every part of `arm` is normal, so the chance of a right answer is too."
    first, second = (
        s / np.sqrt(2 * luck**2 + 2 * 0.7**2 + 0.5**2) for s, luck in zip(strengths, lucks, strict=True)
    )
    return stats.norm.cdf(first) - stats.norm.cdf(second)


WORLDS = {
    "no gain": ((1.0, 1.0), (0.5, 0.5)),
    "a gain": ((1.5, 0.5), (0.3, 0.8)),
    "draws matter most": ((1.2, 0.8), (1.2, 1.2)),
    "cases matter most": ((1.2, 0.9), (0.05, 0.05)),
}


@pytest.mark.slow
@pytest.mark.parametrize("draws", [3, 5, 10, 20])
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_cover_the_true_gain(world, draws):
    metric, (strengths, lucks) = find_metric("balanced_accuracy"), WORLDS[world]
    gain = truth(strengths, lucks)
    rng = np.random.default_rng(draws)
    intervals = [study(rng, metric, draws, strengths, lucks) for _ in range(250)]
    assert np.mean([i.low <= gain <= i.high for i in intervals]) >= 0.92
    words = [verdict(i.low, i.high) for i in intervals]
    if world == "no gain":
        assert np.mean([word in ("helps", "hurts") for word in words]) <= 0.07
    if world == "a gain" and draws >= 10:  # cautious, but not blind
        assert np.mean([word == "helps" for word in words]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "auc", "sensitivity_at_90_specificity"])
def test_intervals_of_other_metrics_cover_no_gain(metric):
    rng = np.random.default_rng(5)
    intervals = [study(rng, find_metric(metric), 5, *WORLDS["no gain"], replicates=200) for _ in range(150)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) >= 0.93


@pytest.mark.slow
def test_films_of_one_patient_are_not_strangers():
    "Six films each of 30 patients: counted one by one they pretend to far more evidence than there is."
    metric, (strengths, _) = find_metric("accuracy"), WORLDS["no gain"]

    def covered(grouped):
        rng = np.random.default_rng(7)
        kwargs = {
            "draws": 10,
            "strengths": strengths,
            "lucks": (0.05, 0.05),
            "people": 30,
            "films": 6,
            "grouped": grouped,
        }
        return np.mean([(i := study(rng, metric, **kwargs)).low <= 0 <= i.high for _ in range(200)])

    assert covered(True) >= 0.92
    assert covered(False) < 0.85


def test_one_draw_speaks_of_test_cases_only():
    "With one draw each, two equal arms differ 'for sure' again and again: the reason why one draw gets no verdict."
    rng = np.random.default_rng(0)
    intervals = [study(rng, find_metric("balanced_accuracy"), 1, *WORLDS["no gain"]) for _ in range(100)]
    assert np.mean([i.low > 0 or i.high < 0 for i in intervals]) > 0.3
    assert "test cases only" in intervals[0].speaks_of and np.isnan(intervals[0].from_draws)


@pytest.mark.parametrize("draws", [2, 5, 15])
def test_p_values_agree_with_intervals(draws):
    rng = np.random.default_rng(draws)
    for _ in range(40):
        interval = study(rng, find_metric("accuracy"), draws, (1.2, 0.6), (0.2, 0.2), replicates=1000)
        assert 0 < interval.p_value <= 1
        if abs(interval.p_value - 0.05) > 0.005:
            assert (interval.p_value < 0.05) == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize("draws", [3, 20])
def test_arms_that_never_differ_on_few_cases_are_not_declared_equal(draws):
    "No difference on 20 cases is no proof of none within 2 points; on 400 cases it is."
    for people, word in ((20, "cannot tell"), (400, "no difference that matters")):
        held_out = HeldOut(np.arange(people) % 2, np.arange(people))
        right = np.tile(held_out.labels, (draws, 1))
        scores = resampled_scores(
            find_metric("accuracy"), held_out, right, np.eye(2)[right], held_out.weights(200)
        )
        interval = interval_of_gain(scores, scores)
        assert interval.estimate == 0 and interval.p_value == 1
        assert verdict(interval.low, interval.high) == word


def test_a_score_that_no_test_set_moves_lies_in_the_middle_of_its_interval():
    labels, draws = np.repeat(np.arange(5), 23), 12
    same = np.zeros((draws, len(labels)), int), np.full((draws, len(labels), 5), 0.2)
    held_out = HeldOut(labels, np.arange(len(labels)))
    scores = resampled_scores(METRICS["balanced_accuracy"], held_out, *same, held_out.weights(400))
    interval = interval_of_mean(scores)
    assert interval.estimate - interval.low == pytest.approx(interval.high - interval.estimate)


def test_a_class_with_one_test_case_says_next_to_nothing_about_balanced_accuracy():
    rng = np.random.default_rng(0)
    held_out = HeldOut(np.array([0] * 99 + [1]), np.arange(100))
    decided = np.tile(held_out.labels, (5, 1))
    decided[:, :10] = rng.integers(0, 2, (5, 10))
    interval = interval_of_mean(
        resampled_scores(
            find_metric("balanced_accuracy"), held_out, decided, np.eye(2)[decided], held_out.weights(200)
        )
    )
    assert interval.units == 1 and interval.low < 0.5


def test_memory_blocks_do_not_change_the_numbers():
    rng = np.random.default_rng(0)
    held_out = HeldOut(np.arange(3000) % 2, np.arange(3000))
    said = arm(rng, held_out.labels, np.zeros(3000), 2, 1.0, 0.2)
    weights = held_out.weights(700)  # 2.1 million numbers: many blocks
    scores = resampled_scores(find_metric("auc"), held_out, *said, weights)
    expected = [auc(held_out.labels, said[1][1], row) for row in weights[[0, 350, 699]]]
    np.testing.assert_allclose(scores.resampled[1, [0, 350, 699]], expected)


def test_unpaired_scores_are_refused():
    held_out = HeldOut(np.array([0, 1]), np.array(["a", "b"]))
    decided = np.array([[0, 1], [1, 1]])
    scores = resampled_scores(
        find_metric("accuracy"), held_out, decided, np.eye(2)[decided], held_out.weights(10)
    )
    with pytest.raises(Refusal, match="paired"):
        interval_of_gain(scores, scores.take([0]))
    with pytest.raises(Refusal, match="one of each"):
        HeldOut(np.array([0, 1]), np.array(["a"]))


def test_corrected_interval_on_paper():
    "Four splits of 80 and 20 cases, worked by hand: variance 0.0002/3 x (1/4 + 1/4), t(3) = 3.1824."
    gains = [0.01, 0.02, 0.02, 0.03]
    interval = corrected_resampled_interval(gains, n_train=80, n_test=20)
    half = 3.182446 * np.sqrt(0.0002 / 3 * 0.5)
    assert (interval.low, interval.high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-7)
    with pytest.raises(Refusal):
        corrected_resampled_interval([0.1], 80, 20)


# -- verdicts


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.0001, 0.5, "helps"),
        (-0.5, -0.0001, "hurts"),
        (-0.02, 0.02, "no difference that matters"),
        (0.0, 0.0, "no difference that matters"),
        (0.0, 0.021, "cannot tell"),
        (-0.021, 0.0, "cannot tell"),
        (float("nan"), float("nan"), "cannot tell"),
    ],
)
def test_verdicts(low, high, word):
    assert verdict(low, high) == word


def test_margin():
    assert verdict(-0.04, 0.04, margin=0.05) == "no difference that matters"
    with pytest.raises(Refusal, match="margin"):
        verdict(0, 1, margin=-0.1)


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_the_step_down_procedure_rejects(seed):
    p = np.random.default_rng(seed).uniform(0, 0.2, 12) ** 2
    rejected = set()
    for step, row in enumerate(np.argsort(p)):
        if p[row] > 0.05 / (12 - step):
            break
        rejected.add(int(row))
    assert set(np.flatnonzero(holm(p) <= 0.05)) == rejected


def test_needed_asks_for_less_when_the_gain_is_larger():
    def draws_asked(gain):
        interval = Interval(
            gain, gain - 0.2, gain + 0.2, 0.3, draws=4, units=2000, from_draws=2e-3, from_cases=1e-6
        )
        return int(needed(interval, 4000).split()[1])

    assert draws_asked(0.04) > draws_asked(0.08) > draws_asked(0.12) > 4


def test_the_study_asked_for_usually_settles_it():
    "From the true variances of one draw: as many draws as asked for give a clear verdict about four times in five."
    rng, spread, gain = np.random.default_rng(0), 0.08, 0.05
    interval = Interval(gain, -0.1, 0.2, 0.3, draws=4, units=10**6, from_draws=spread**2 / 4, from_cases=1e-9)
    draws = int(needed(interval, 10**6).split()[1])
    means, deviations = [], []
    for _ in range(2000):
        sample = rng.normal(gain, spread, draws)
        means.append(sample.mean())
        deviations.append(sample.std(ddof=1) / np.sqrt(draws))
    settled = np.abs(means) > stats.t.ppf(0.975, draws - 1) * np.array(deviations)
    assert 0.7 < settled.mean() < 0.95
