"""Calibration, prediction sets, outliers, subgroups and label errors: numbers that are known beforehand, and floors."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.evidence.trust import calibration as calibration_module
from tljupyter.evidence.trust.calibration import (
    Calibration,
    calibration_changes,
    class_probabilities,
    fit_calibration,
    labelled_probabilities,
    with_calibrated,
)
from tljupyter.evidence.trust.conformal import (
    conformal_sets,
    coverage,
    cross_fitted_head,
    fewest_cases,
    largest_level,
)
from tljupyter.evidence.trust.label_errors import find_label_doubts, rehearse
from tljupyter.evidence.trust.outliers import fit_outliers
from tljupyter.evidence.trust.subgroups import NOT_STATED, subgroups
from tljupyter.figures.errors import reliability_plot
from tljupyter.figures.trust import (
    calibration_table,
    conformal_face,
    label_doubts_face,
    outliers_plot,
    subgroups_plot,
    trust_face,
)
from tljupyter.measures.metrics import log_loss
from tljupyter.refusals import Refusal
from tljupyter.transfer.heads import choose_head, solve_head


def drawn(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    "Labels that follow the probabilities."
    return (
        (rng.random(len(probabilities))[:, None] > probabilities.cumsum(1))
        .sum(1)
        .clip(0, probabilities.shape[1] - 1)
    )


def powered(probabilities: np.ndarray, power: float) -> np.ndarray:
    return probabilities**power / (probabilities**power).sum(1, keepdims=True)


# Calibration


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_temperature_is_found_again(temperature, classes):
    rng = np.random.default_rng(classes)
    honest = rng.dirichlet(np.ones(classes), size=3000)
    found = fit_calibration(drawn(honest, rng), powered(honest, temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.cases == found.units == 3000


def test_the_temperature_of_a_real_model_is_that_of_scikit_learn():
    rows, labels = load_breast_cancer(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, labels = rows[order] + np.random.default_rng(1).normal(0, 2, rows.shape), labels[order]
    model = LogisticRegression(C=0.1, max_iter=5000).fit(rows[:80], labels[:80])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(rows[80:], labels[80:])
    said = model.predict_proba(rows[80:])
    found = fit_calibration(labels[80:], said)
    assert found.temperature > 1.2
    # theirs has no prior
    assert np.abs(found.apply(said) - theirs.predict_proba(rows[80:])).max() < 0.02


def test_few_cases_are_held_near_1_and_many_are_not():
    certain = np.tile([[0.9, 0.1], [0.1, 0.9]], (20, 1))
    right = np.tile([0, 1], 20)
    few, many = (
        fit_calibration(right, certain),
        fit_calibration(np.tile(right, 50), np.tile(certain, (50, 1))),
    )
    assert many.temperature < few.temperature < 1  # all right: the likeliest temperature is 0
    assert few.temperature > 0.25


def test_the_temperature_minimises_the_stated_loss():
    rng = np.random.default_rng(3)
    honest = rng.dirichlet([1, 1], size=60)
    labels, said = drawn(honest, rng), powered(honest, 3)

    def loss(t):
        return 60 * log_loss(labels, powered(said, np.exp(-t))) + t**2 / (
            2 * calibration_module.PRIOR_SPREAD**2
        )

    wanted = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert fit_calibration(labels, said).temperature == pytest.approx(wanted, rel=1e-3)


def test_probabilities_of_0_and_1_stay_finite():
    labels = np.tile([0, 1], 30)
    said = np.eye(2)[labels]
    said[:6] = said[:6, ::-1]  # sure and wrong
    found = fit_calibration(labels, said)
    after = found.apply(said)
    assert np.isfinite(after).all() and np.allclose(after.sum(1), 1) and 0 < after.min() < after.max() < 1
    assert found.temperature > 1
    assert np.isfinite([(one.low, one.high) for one in calibration_changes(labels, said, after)]).all()
    ten = np.eye(10)[np.arange(50) % 10]
    assert np.isfinite(fit_calibration(np.arange(50) % 10, ten).apply(ten)).all()


def test_calibration_keeps_the_order_of_classes():
    said = np.random.default_rng(0).dirichlet([0.3] * 4, size=200)
    for temperature in (0.2, 5.0):
        after = Calibration(temperature, 200, 200, "").apply(said)
        np.testing.assert_array_equal(after.argmax(1), said.argmax(1))


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (np.tile([0, 1], 19), None, "40 out-of-fold cases; there are 38"),
        (np.zeros(60, int), None, "All 60 cases are of class 0"),
        (np.tile([0, 1], 100), np.arange(200) // 10, "40 out-of-fold groups; there are 20"),
    ],
)
def test_calibration_refuses_what_cannot_be_calibrated(labels, groups, message):
    said = np.full((len(labels), 2), 0.5)
    with pytest.raises(Refusal, match=message):
        fit_calibration(labels, said, groups)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.5, 0.5], [0.7, 0.7]], "Row 1 is not a row of probabilities"),
        ([[0.5, 0.5], [np.nan, 1.0]], "Row 1"),
        ([[-0.1, 1.1]], "Row 0"),
        ([[1.0]], "two or more classes"),
        ([0.5, 0.5], "a table"),
    ],
)
def test_what_is_not_a_probability_is_named(table, message):
    with pytest.raises(Refusal, match=message):
        class_probabilities(np.array(table))


def test_labels_probabilities_and_groups_belong_together():
    said = np.full((4, 2), 0.5)
    with pytest.raises(Refusal, match="3 labels"):
        labelled_probabilities([0, 1, 0], said)
    with pytest.raises(Refusal, match="2 groups"):
        labelled_probabilities([0, 1, 0, 1], said, ["a", "b"])
    with pytest.raises(Refusal, match="A label is 2"):
        labelled_probabilities([0, 1, 0, 2], said)
    with pytest.raises(Refusal, match="unlabelled"):
        labelled_probabilities([0, 1, 0, -1], said)


def test_a_change_is_better_when_it_is_and_unknown_when_nothing_changed():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([1, 1], size=800)
    labels, sure = drawn(honest, rng), powered(honest, 4)
    changes = {one.metric: one for one in calibration_changes(labels, sure, honest)}
    assert {one.verdict for one in changes.values()} == {"better"}
    assert {one.verdict for one in calibration_changes(labels, honest, sure)} == {"worse"}
    same = calibration_changes(labels, honest, honest)
    assert all(one.verdict == "cannot tell" and one.change == 0 for one in same)
    assert changes["log_loss"].change == pytest.approx(log_loss(labels, honest) - log_loss(labels, sure))


def test_groups_widen_the_interval_of_a_change():
    rng = np.random.default_rng(1)
    honest = np.repeat(rng.dirichlet([1, 1], size=60), 10, axis=0)
    labels = np.repeat(drawn(honest[::10], rng), 10)
    alone, together = (
        calibration_changes(labels, powered(honest, 3), honest, groups, ["log_loss"])[0]
        for groups in (None, np.arange(600) // 10)
    )
    assert together.units == 60 and together.high - together.low > 2.5 * (alone.high - alone.low)


def test_calibrated_predictions_are_an_arm_of_the_reliability_plot():
    rng = np.random.default_rng(0)
    parts = []
    for draw in range(2):
        said = powered(rng.dirichlet([1, 1], size=80), 3)
        part = pd.DataFrame(
            {
                "label": drawn(powered(said, 1 / 3), rng),
                "predicted": said.argmax(1),
                "p_0": said[:, 0],
                "p_1": said[:, 1],
            }
        )
        parts.append(
            part.assign(
                draw=draw, arm="probe", labels_per_class=5, part="test", case=np.arange(80).astype(str)
            )
        )
    table = pd.concat(parts, ignore_index=True)
    both, name = with_calibrated(table, "probe", 5, {1: Calibration(3.0, 50, 50, "")})
    assert len(both) == 160 and set(both["draw"]) == {1}
    assert f"{name}: calibration error" in reliability_plot(both, ["a", "b"], 5, arms=("probe", name)).alt
    with pytest.raises(Refusal, match="draw 7"):
        with_calibrated(table, "probe", 5, {7: Calibration(3.0, 50, 50, "")})


# Conformal sets


def test_the_floors_of_the_levels():
    assert [fewest_cases(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    assert [largest_level(n) for n in (0, 8, 9, 18, 19, 98, 99)] == [0, 0.88, 0.9, 0.94, 0.95, 0.98, 0.99]
    for n in range(2, 300):
        assert fewest_cases(largest_level(n)) <= n
    for level in (0, 1, -1, 90):
        with pytest.raises(Refusal, match="between 0 and 1"):
            fewest_cases(level)


@pytest.mark.parametrize(("cases", "level", "possible"), [(8, 0.9, 0.88), (18, 0.95, 0.94), (98, 0.99, 0.98)])
def test_too_few_calibration_cases_are_refused_with_what_would_do(cases, level, possible):
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1], size=cases + 1)
    labels = drawn(said, rng)
    with pytest.raises(
        Refusal,
        match=rf"need {cases + 1} calibration cases; there are {cases}.*level={possible}.*label 1 more",
    ):
        conformal_sets(labels[:-1], said[:-1], said, level)
    conformal_sets(labels, said, said, level)
    conformal_sets(labels[:-1], said[:-1], said, possible)


def test_p_values_are_those_of_crepes():
    from crepes import ConformalClassifier

    rng = np.random.default_rng(0)
    known, new = rng.dirichlet([1, 1, 1], size=30), rng.dirichlet([1, 1, 1], size=50)
    labels = drawn(known, rng)
    theirs = ConformalClassifier().fit(1 - known[np.arange(30), labels]).predict_p(1 - new, smoothing=False)
    found = conformal_sets(labels, known, new)
    np.testing.assert_allclose(found.p_values, theirs, atol=1e-12)
    np.testing.assert_array_equal(found.sets, theirs > 0.1 + 1e-9)
    each = conformal_sets(labels, known, new, 0.6, by_class=True)
    for code in range(3):
        alone = ConformalClassifier().fit((1 - known[labels == code])[:, code])
        np.testing.assert_allclose(each.p_values[:, code], alone.predict_p(1 - new[:, code], smoothing=False))


def test_a_set_at_the_floor_is_not_always_everything():
    said = np.array([[0.9, 0.1]] * 9)
    assert conformal_sets(np.zeros(9, int), said, np.array([[0.95, 0.05]]), 0.9).named(["a", "b"]) == [("a",)]


@pytest.mark.parametrize(("cases", "level"), [(9, 0.9), (25, 0.9), (60, 0.8), (19, 0.95)])
def test_coverage_over_many_splits_of_real_data_is_what_is_promised(cases, level):
    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(rows))
    head = solve_head(rows[order[:60]], labels[order[:60]], 10, 0.01)
    said, known = head.predict_proba(rows[order[60:]]), labels[order[60:]]
    rng, splits, asked = np.random.default_rng(1), 400, 50
    hits = 0
    for _ in range(splits):
        dealt = rng.permutation(len(known))[: cases + asked]
        one, rest = dealt[:cases], dealt[cases:]
        hits += (
            conformal_sets(known[one], said[one], said[rest], level).sets[np.arange(asked), known[rest]].sum()
        )
    # without ties, the expected coverage is this; each split is one piece of evidence about it, with the spread of a beta
    out = int(np.floor((cases + 1) * (1 - level) + 1e-9))
    expected = 1 - out / (cases + 1)
    variance = expected * (1 - expected) / (cases + 2) + expected * (1 - expected) / asked
    assert hits / (splits * asked) == pytest.approx(expected, abs=4 * np.sqrt(variance / splits))
    assert expected >= level


def test_the_band_holds_nine_of_ten_calibrations():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        said = rng.dirichlet([1, 1, 1], size=3030)
        labels = drawn(said, rng)
        sets = conformal_sets(labels[:30], said[:30], said[30:])
        share = sets.sets[np.arange(3000), labels[30:]].mean()
        inside.append(sets.band[0] <= share <= sets.band[1])
    assert stats.binomtest(sum(inside), 300, 0.9).pvalue > 0.001


def test_each_class_keeps_its_own_promise():
    rng, plain, each = np.random.default_rng(0), [], []
    for _ in range(150):
        honest = rng.dirichlet([4, 1], size=440)  # the second class is rare
        labels = drawn(honest, rng)
        for found, by_class in ((plain, False), (each, True)):
            sets = conformal_sets(labels[:140], honest[:140], honest[140:], by_class=by_class).sets
            found.append(sets[labels[140:] == 1, 1].mean())
    assert np.mean(plain) < 0.75 and 0.89 < np.mean(each) < 0.95


def test_by_class_needs_the_cases_in_each_class():
    labels = np.repeat([0, 1], [40, 8])
    said = np.full((48, 2), 0.5)
    with pytest.raises(Refusal, match="9 calibration cases of class 1; there are 8.*leave out by_class"):
        conformal_sets(labels, said, said, by_class=True)
    with pytest.raises(Refusal, match="class 2; there are 0"):
        conformal_sets(labels, np.full((48, 3), 1 / 3), np.full((1, 3), 1 / 3), by_class=True)


def test_patients_are_counted_not_films():
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1], size=40)
    with pytest.raises(Refusal, match="9 calibration groups; there are 8"):
        conformal_sets(drawn(said, rng), said, said, groups=np.arange(40) // 5)
    labels = drawn(said, rng)
    apart = conformal_sets(labels, said, said, groups=[f"patient {i}" for i in range(40)])
    np.testing.assert_array_equal(apart.p_values, conformal_sets(labels, said, said).p_values)
    twice = conformal_sets(np.repeat(labels, 2), np.repeat(said, 2, axis=0), said, groups=np.arange(80) // 2)
    np.testing.assert_allclose(twice.p_values, apart.p_values)  # a film that is there twice is one film


@pytest.mark.slow
def test_cross_conformal_sets_cover_and_promise_less():
    rows, labels = load_breast_cancer(return_X_y=True)
    covered = []
    for seed in range(8):
        train = few_shot_draw(labels, 15, seed).train
        test = np.setdiff1d(np.arange(len(rows)), train)
        sets = cross_fitted_head(rows[train], labels[train], 2, rows[test], folds=4, seed=seed).sets()
        covered.append(sets.sets[np.arange(len(test)), labels[test]].mean())
    assert sets.band is None and 0.6 < sets.guaranteed < 0.8
    assert 0.88 < np.mean(covered) < 0.99


def test_cross_conformal_p_values_by_hand():
    labels, folds = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    rng = np.random.default_rng(0)
    said, new = rng.dirichlet([1, 1], size=9), rng.dirichlet([1, 1], size=(2, 3))
    found = conformal_sets(labels, said, new, folds=folds).p_values
    for i, code in itertools.product(range(3), range(2)):
        stranger = sum(1 - said[j, labels[j]] >= 1 - new[folds[j], i, code] for j in range(9))
        assert found[i, code] == pytest.approx((1 + stranger) / 10)


@pytest.mark.parametrize(
    ("folds", "shape"),
    [([0] * 5 + [2] * 5, (2, 4, 2)), ([0] * 10, (2, 4, 2)), ([0, 1] * 5, (4, 2)), ([0, 1], (2, 4, 2))],
)
def test_folds_and_probabilities_belong_together(folds, shape):
    with pytest.raises(Refusal):
        conformal_sets([0, 1] * 5, np.full((10, 2), 0.5), np.full(shape, 0.5), folds=folds)


def test_the_sizes_of_sets_and_their_coverage():
    known = np.column_stack([np.linspace(0.5, 1, 19), 1 - np.linspace(0.5, 1, 19)])
    sets = conformal_sets(np.zeros(19, int), known, [[0.99, 0.01], [0.5, 0.5], [0.45, 0.55]], 0.9)
    assert sets.sizes.tolist() == [1, 0, 1] and sets.mean_size == pytest.approx(2 / 3)
    assert sets.empty_share == pytest.approx(1 / 3) == 1 - sets.single_share
    counted = coverage(sets, [0, 0, 1])
    assert counted.share == pytest.approx(2 / 3) and counted.by_class == (0.5, 1.0)
    assert 0 <= counted.low < counted.share < counted.high <= 1
    for wrong in ([0, 1], [0, 1, 2]):
        with pytest.raises(Refusal, match="labels do not belong"):
            coverage(sets, wrong)
    nothing = conformal_sets(np.zeros(19, int), known, np.empty((0, 2)))
    assert nothing.mean_size == nothing.empty_share == 0.0 and "0 cases" in str(nothing)
    assert coverage(np.eye(2, dtype=bool), [0, 0]).by_class == (0.5, None)


def test_the_interval_of_a_coverage_counts_patients():
    inside = np.repeat(np.random.default_rng(0).random(30) < 0.8, 10)
    sets = np.column_stack([inside, ~inside])
    by_film, by_patient = (
        coverage(sets, np.zeros(300, int), groups) for groups in (None, np.arange(300) // 10)
    )
    assert by_patient.units == 30 and by_patient.high - by_patient.low > 2 * (by_film.high - by_film.low)


# Outliers


def test_p_values_are_uniform_when_nothing_is_strange():
    rng = np.random.default_rng(0)
    p_values = np.concatenate(
        [fit_outliers(rng.normal(size=(19, 5))).p_values(rng.normal(size=(1, 5))) for _ in range(2000)]
    )
    for level in (0.05, 0.1, 0.25, 0.5, 0.9):
        assert stats.binomtest(int((p_values <= level + 1e-9).sum()), 2000, level).pvalue > 1e-4
    assert set(np.round(20 * p_values, 9)) <= set(range(1, 21))


def test_p_values_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    known, new = rng.normal(size=(12, 3)), rng.normal(size=(5, 3))
    found = fit_outliers(known).p_values(new)
    for i, one in enumerate(new):
        rows = np.vstack([known, one])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        distances = 1 - rows @ rows.T + np.where(np.eye(13, dtype=bool), np.inf, 0)
        scores = distances.min(1)
        assert found[i] == pytest.approx((scores >= scores[-1] - 1e-12).mean())


def test_another_films_of_a_patient_are_no_neighbours():
    rng, false_alarms = np.random.default_rng(0), {True: [], False: []}
    for _ in range(60):
        patients = rng.normal(size=(50, 8))
        films = np.repeat(patients, 4, axis=0) + 0.1 * rng.normal(size=(200, 8))
        new, groups = films[120:], np.repeat(np.arange(30), 4)
        for grouped in (True, False):
            false_alarms[grouped].append(
                fit_outliers(films[:120], groups if grouped else None).flags(new).share
            )
    assert np.mean(false_alarms[False]) > 0.3
    assert np.mean(false_alarms[True]) < 0.07


@pytest.mark.parametrize(("cases", "level"), [(18, 0.05), (98, 0.01)])
def test_flags_need_as_many_known_cases_as_their_level(cases, level):
    rows = np.random.default_rng(0).normal(size=(cases + 1, 4))
    with pytest.raises(Refusal, match=f"need {cases + 1} independent known cases; there are {cases}"):
        fit_outliers(rows[:-1]).flags(rows, level)
    assert not fit_outliers(rows).flags(rows, level).flags.any()  # a known case is never strange


def test_outliers_refuse_what_cannot_be_compared():
    rows = np.random.default_rng(0).normal(size=(20, 4))
    score = fit_outliers(rows)
    with pytest.raises(Refusal, match="independent groups of the known kind; there are 5"):
        fit_outliers(rows, np.arange(20) // 4)
    with pytest.raises(Refusal, match="there are 8"):
        fit_outliers(rows[:8])
    with pytest.raises(Refusal, match=r"\(cases, 4\)"):
        score.p_values(rows[:, :3])
    with pytest.raises(Refusal, match="3 groups"):
        fit_outliers(rows, ["a", "b", "c"])
    spoilt = rows.copy()
    spoilt[3, 1] = np.nan
    with pytest.raises(Refusal, match="Row 3"):
        score.p_values(spoilt)
    zero = score.p_values(np.zeros((2, 4)))
    assert np.isfinite(zero).all() and np.isfinite(fit_outliers(np.zeros((20, 4))).p_values(rows)).all()
    assert len(score.flags(rows[:0]).flags) == 0 and score.flags(rows[:0]).share == 0.0


@pytest.fixture(scope="session")
def films(data_folder):
    "SqueezeNet features of one film a patient: 120 of children, 40 of adults of another hospital."
    from tljupyter.backbones.weights import load_backbone
    from tljupyter.domains.readers import read_images
    from tljupyter.transfer.probe import stage_features

    weights = "weights_small_pretrained/squeezenet1_0_imagenet.safetensors"
    sets = ("lung_kermany_pediatric", "lung_nih_adult_a")
    for name in (*sets, weights):
        if data_folder is None or not (data_folder / name).exists():
            pytest.skip(f"real data set {name.split('/')[0]} is not on this machine")
    backbone, found = load_backbone("squeezenet1_0", data_folder / weights), {}
    backbone = replace(backbone, input=backbone.input.at(112))
    for name, most in zip(sets, (120, 40), strict=True):
        domain = read_images(data_folder / name)
        one_each = np.unique(domain.groups, return_index=True)[1]
        chosen = np.random.default_rng(0).permutation(one_each)[:most]
        found[name] = (domain.take(chosen), stage_features(backbone, domain.take(chosen).items))
    return found


def test_films_of_another_hospital_are_flagged(films):
    (_, children), (_, adults) = films["lung_kermany_pediatric"], films["lung_nih_adult_a"]
    others, areas, lengths, alarms, found = np.arange(40), [], [], [], []
    for seed in range(10):
        dealt = np.random.default_rng(seed).permutation(120)
        known, others = children[dealt[:80]], children[dealt[80:]]
        score, truth = fit_outliers(known), np.repeat([0, 1], 40)
        both = np.concatenate([others, adults])
        areas.append(roc_auc_score(truth, score.scores(both)))
        lengths.append(roc_auc_score(truth, np.linalg.norm(both[:, None] - known, axis=2).min(1)))
        alarms.append(score.flags(others).share)
        found.append(score.flags(adults).share)
    assert np.mean(areas) > 0.95 and np.mean(areas) > np.mean(lengths) + 0.03
    assert np.mean(alarms) < 0.08 and np.mean(found) > 0.75


def test_trust_in_real_films_from_end_to_end(films):
    domain, children = films["lung_kermany_pediatric"]
    train, test = np.arange(60), np.arange(60, 120)
    chosen = choose_head(children[train], domain.labels[train], 2)
    calibration = fit_calibration(domain.labels[train], chosen.out_of_fold, domain.groups[train])
    said = chosen.head.predict_proba(children[test])
    changes = calibration_changes(domain.labels[test], said, calibration.apply(said), domain.groups[test])
    assert all(np.isfinite([one.before, one.after, one.low, one.high]).all() for one in changes)
    crossed = cross_fitted_head(children[train], domain.labels[train], 2, children[test])
    sets = crossed.sets(groups=domain.groups[train])
    assert coverage(sets, domain.labels[test]).high > sets.guaranteed
    face = conformal_face(sets, domain.take(test))
    assert face.count("<img") == 6 and "pneumonia" in face.lower()


# Subgroups


def predicted(labels, wrong_share, draws=4, seed=0, groups=None, arm="probe") -> pd.DataFrame:
    "Predictions of a model that is wrong in the stated share of each case's kind; a case has its own difficulty."
    rng, parts = np.random.default_rng(seed), []
    hard = rng.random(len(labels))
    for draw in range(draws):
        wrong = (0.8 * hard + 0.2 * rng.random(len(labels))) < np.asarray(wrong_share)
        said = np.where(wrong, 1 - labels, labels)
        sure = rng.uniform(0.55, 0.95, len(labels))
        p_1 = np.where(said == 1, sure, 1 - sure)
        part = pd.DataFrame({"label": labels, "predicted": said, "p_0": 1 - p_1, "p_1": p_1})
        own = [""] * len(labels) if groups is None else groups
        names = [f"case {i}" for i in range(len(labels))]
        parts.append(part.assign(labels_per_class=5, draw=draw, arm=arm, part="test", case=names, group=own))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=seed)


def named(values) -> dict[str, str]:
    return {f"case {i}": value for i, value in enumerate(values)}


LABELS = np.tile([0, 1], 120)
CLINICS = np.array(["a"] * 60 + ["b"] * 80 + ["c"] * 94 + ["d"] * 6)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy", "auc", "log_loss", "brier"])
def test_the_worst_group_is_found_where_it_is_planted(metric):
    table = predicted(LABELS, np.where(CLINICS == "b", 0.45, 0.1))
    found = subgroups(table, named(CLINICS), "probe", 5, metric)
    assert found.worst.name == "b" == found.groups[0].name and found.worst.verdict == "worse"
    assert found.worst.p_holm < 0.05 and found.worst_interval[0] <= found.worst.low + 1e-9
    small = found.groups[-1]
    assert (small.name, small.cases, small.note, small.score, small.verdict) == (
        "d",
        6,
        "too few: 6",
        None,
        None,
    )
    assert (
        "Worst group: b" in str(found)
        and "worse than the rest" in str(found)
        and "d (too few: 6)" in str(found)
    )


def test_the_scores_of_groups_are_plain_means_over_draws():
    table = predicted(LABELS, np.where(CLINICS == "b", 0.45, 0.1))
    found = {group.name: group for group in subgroups(table, named(CLINICS), "probe", 5, "accuracy").groups}
    clinic = table["case"].map(named(CLINICS))
    right = table["label"] == table["predicted"]
    for name in "abc":
        assert found[name].score == pytest.approx(right[clinic == name].mean())
        assert found[name].difference == pytest.approx(
            right[clinic == name].mean() - right[clinic != name].mean()
        )


@pytest.mark.slow
def test_without_a_worse_group_the_answer_is_cannot_tell():
    false = 0
    for seed in range(40):
        table = predicted(LABELS, np.full(240, 0.25), seed=seed)
        found = subgroups(table, named(CLINICS), "probe", 5, replicates=300)
        false += any(group.verdict in ("worse", "better") for group in found.groups)
        assert found.worst is not None
    assert (
        false <= 7
    )  # five in a hundred are expected at most; seven of sixty would be hit by luck once in fifty
    assert "cannot be told from the rest" in str(found) or "no difference" in str(found)


def test_a_group_of_one_class_is_compared_within_its_class():
    kinds = np.where(LABELS == 0, "healthy", np.where(np.arange(240) % 4 == 1, "common", "rare"))
    table = predicted(LABELS, np.where(kinds == "rare", 0.5, 0.1), draws=6)
    found = {group.name: group for group in subgroups(table, named(kinds), "probe", 5).groups}
    assert found["rare"].verdict == "worse" and found["rare"].classes == (1,)
    assert found["healthy"].difference is None and found["healthy"].note.startswith("no comparison")
    ill = table["label"] == 1
    rare = table["case"].map(named(kinds)) == "rare"
    right = table["label"] == table["predicted"]
    assert found["rare"].difference == pytest.approx(right[rare].mean() - right[ill & ~rare].mean())
    areas = {group.name: group.note for group in subgroups(table, named(kinds), "probe", 5, "auc").groups}
    assert areas["rare"] == "one class only"


def test_two_groups_are_one_comparison():
    halves = np.where(np.arange(240) < 120, "left", "right")
    found = subgroups(predicted(LABELS, np.where(halves == "left", 0.3, 0.1)), named(halves), "probe", 5)
    assert [group.p_holm for group in found.groups] == [group.p_value for group in found.groups]
    assert {group.verdict for group in found.groups} in ({"worse", "better"}, {"cannot tell"})
    assert found.groups[0].difference == pytest.approx(-found.groups[1].difference)


def test_patients_count_once_in_a_group():
    patients = [f"p{i // 8}" for i in range(240)]
    found = subgroups(predicted(LABELS, np.full(240, 0.2), groups=patients), named(CLINICS), "probe", 5)
    by_name = {group.name: group for group in found.groups}
    assert by_name["a"].units == 8 and by_name["a"].note == "too few: 8"
    assert by_name["c"].units == 13 and by_name["c"].score is not None


def test_missing_values_are_a_group_and_odd_input_is_refused():
    table = predicted(LABELS, np.full(240, 0.2))
    values = named(np.where(CLINICS == "a", None, CLINICS))
    assert NOT_STATED in {group.name for group in subgroups(table, values, "probe", 5).groups}
    assert (
        subgroups(table, pd.Series(named(CLINICS)), "probe", 5).groups
        == subgroups(table, named(CLINICS), "probe", 5).groups
    )
    del values["case 7"]
    with pytest.raises(Refusal, match='No group is stated for the case "case 7"'):
        subgroups(table, values, "probe", 5)
    with pytest.raises(Refusal, match="240 groups; the most is 20"):
        subgroups(table, named(range(240)), "probe", 5)
    with pytest.raises(Refusal, match='Did you mean "probe"'):
        subgroups(table, named(CLINICS), "prob", 5)
    with pytest.raises(Refusal, match="it has 5"):
        subgroups(table, named(CLINICS), "probe", 6)
    with pytest.raises(Refusal, match="No metric"):
        subgroups(table, named(CLINICS), "probe", 5, "luck")
    with pytest.raises(Refusal, match="same cases"):
        subgroups(table.iloc[1:], named(CLINICS), "probe", 5)
    one = subgroups(table, named(["x"] * 240), "probe", 5)
    assert one.worst is None and one.worst_interval is None and "Fewer than two groups" in str(one)
    assert not one.table()["score"].isna().any()


# Label errors


@pytest.mark.parametrize(("share", "chance"), [(0.05, 0.05), (0.1, 0.1)])
def test_flipped_digits_are_listed_far_better_than_by_chance(share, chance):
    rows, digits = load_digits(return_X_y=True)
    train = few_shot_draw(digits, 25, seed=3).train
    rng, hits, listed, planted = np.random.default_rng(0), 0, 0, 0
    for _ in range(4):
        flipped = rng.choice(250, round(share * 250), replace=False)
        given = digits[train].copy()
        given[flipped] = (given[flipped] + rng.integers(1, 10, len(flipped))) % 10
        said = choose_head(rows[train], given, 10, regularisations=(1e-2,)).out_of_fold
        found = find_label_doubts(given, said)
        cases = [doubt.case for doubt in found.doubts]
        hits, listed, planted = (
            hits + len(set(cases) & set(flipped)),
            listed + len(cases),
            planted + len(flipped),
        )
        for doubt in found.doubts:
            assert doubt.label == given[doubt.case] != doubt.suggested
            assert doubt.suggested_probability == pytest.approx(said[doubt.case].max())
    assert hits / listed > 5 * chance and hits / planted > 0.5


def test_a_list_is_marked_unreliable_with_few_labels_or_without_skill():
    rows, digits = load_digits(return_X_y=True)
    for per_class, reliable in ((10, False), (20, True)):
        train = few_shot_draw(digits, per_class, seed=0).train
        said = choose_head(rows[train], digits[train], 10, regularisations=(1e-2,)).out_of_fold
        found = find_label_doubts(digits[train], said)
        assert found.reliable is reliable and ("Unreliable" in found.note) is not reliable
    rng = np.random.default_rng(0)
    luck = find_label_doubts(np.tile([0, 1], 50), rng.dirichlet([1, 1], size=100))
    assert not luck.reliable and "no better than chance" in luck.note


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(30, int), "of one class"), (np.repeat([0, 1], [26, 4]), "class 1 has 4")],
)
def test_label_errors_need_labels_of_each_class(labels, message):
    with pytest.raises(Refusal, match=message):
        find_label_doubts(labels, np.full((30, 2), 0.5))


def test_label_errors_with_certain_probabilities_and_absent_classes():
    labels = np.repeat([0, 2], 20)
    said = np.eye(3)[labels]
    said[0], said[25] = [0, 0, 1], [1, 0, 0]
    found = find_label_doubts(labels, said)
    assert {(doubt.case, doubt.suggested) for doubt in found.doubts} == {(0, 2), (25, 0)}
    nothing = find_label_doubts(labels, np.eye(3)[labels])
    assert (
        nothing.doubts == () and "None of 40" in str(nothing) and list(nothing.table()) == list(found.table())
    )
    only_absent = np.eye(3)[labels]
    only_absent[0] = [0, 1, 0]
    assert np.isfinite(find_label_doubts(labels, only_absent).table().to_numpy(float)).all()


def test_a_rehearsal_counts_what_it_planted():
    labels = np.tile([0, 1], 40)
    truth = np.eye(2)[labels] * 0.98 + 0.01
    perfect = rehearse(labels, lambda wrong: truth, share=0.1, repetitions=3)
    assert (perfect.planted, perfect.recall, perfect.precision, perfect.by_chance) == (8, 1.0, 1.0, 0.1)
    blind = rehearse(labels, lambda wrong: np.eye(2)[wrong] * 0.98 + 0.01, share=0.1, repetitions=3)
    assert blind.recall == 0 and blind.precision is None and "nothing was listed" in str(blind)
    assert rehearse(labels, lambda wrong: truth, repetitions=1).low is None
    for share, message in ((0.5, "at most 40 %"), (0.001, "0 pairs")):
        with pytest.raises(Refusal, match=message):
            rehearse(labels, lambda wrong: truth, share=share)
    uneven = np.repeat([0, 1], [72, 8])
    seen = []
    rehearse(
        uneven,
        lambda wrong: seen.append(np.bincount(wrong)) or np.eye(2)[uneven] * 0.98 + 0.01,
        share=0.4,
        repetitions=4,
    )
    assert all((counts == [72, 8]).all() for counts in seen)


# Figures


def shown(cases=12, modality="table") -> Domain:
    labels = np.tile([0, 1], cases // 2)
    names = np.array([f"<row {i}>" for i in range(cases)])
    return Domain(
        "toy", ArrayItems(np.zeros((cases, 2))), labels, ("ill & old", "well"), None, None, names, modality
    )


def test_pictures_of_subgroups_and_outliers_draw_at_every_width():
    table = predicted(LABELS, np.where(CLINICS == "b", 0.45, 0.1))
    picture = subgroups_plot(subgroups(table, named(CLINICS), "probe", 5), "clinic")
    rng = np.random.default_rng(0)
    score = fit_outliers(rng.normal(size=(30, 4)))
    other = outliers_plot(
        {"alike": score.flags(rng.normal(size=(20, 4))), "strange": score.flags(rng.normal(size=(20, 4)) + 9)}
    )
    for one in (picture, other):
        for width in (3.65, 7.2):
            assert len(one.png(width)) > 2000
    assert "Worst group: b" in picture.alt and "of 20 flagged at 5 %" in other.alt
    labels = [tick.get_text() for tick in picture.figure().axes[0].get_yticklabels()]
    assert labels[0] == "d · 6 cases\ntoo few: 6" and labels[-1].endswith("worse")
    with pytest.raises(Refusal, match="One to 4"):
        outliers_plot({})


def test_faces_say_what_is_known_and_escape_it():
    domain = shown()
    said = np.column_stack([np.linspace(0.3, 0.7, 12), 1 - np.linspace(0.3, 0.7, 12)])
    sets = conformal_sets(domain.labels, said, said)
    face = conformal_face(sets, domain, most=4)
    assert face.count("<li>") == 4 and "ill &amp; old" in face and "&lt;row" in face and "<row" not in face
    with pytest.raises(Refusal, match="do not belong to toy"):
        conformal_face(sets, shown(10))
    certain = np.eye(2)[domain.labels]
    certain[0] = [0, 1]
    doubts = find_label_doubts(domain.labels, certain)
    assert "given ill &amp; old; rather well (100 %)" in label_doubts_face(doubts, domain)
    with pytest.raises(Refusal, match="12 labels"):
        label_doubts_face(doubts, shown(10))
    table = calibration_table(calibration_changes(domain.labels, said, said))
    assert table.count("cannot tell") == 3 and "12 test cases" in table
    with pytest.raises(Refusal, match="no change"):
        calibration_table(())
    assert "<b>" not in trust_face({"a <b>": Refusal("x <b>")})
