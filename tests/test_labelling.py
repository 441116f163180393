"""How many labels, and which: numbers that would be wrong if the law, the intervals or the queue were."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from tests.labels_needed.coverage import right, true_labels
from tljupyter.domains.draws import few_shot_draw
from tljupyter.evidence.labels.needed import (
    FLOOR,
    LearningCurve,
    labels_needed,
    learning_curve,
    learning_laws,
)
from tljupyter.evidence.labels.queue import OF_A_HEAD, STRATEGIES, label_queue
from tljupyter.figures.labelling import learning_curve_plot
from tljupyter.figures.style import NARROW
from tljupyter.measures.intervals import HeldOut, ResampledScores
from tljupyter.measures.metrics import find_metric
from tljupyter.refusals import Refusal
from tljupyter.transfer.heads import choose_head

BUDGETS = (4, 7, 12, 20, 35, 60)


def simulated(law, seed: int, cases: int = 160, budgets=BUDGETS, draws: int = 12) -> LearningCurve:
    "Cases of differing difficulty, each right in a draw with the probability that the law promises on average."
    rng = np.random.default_rng(seed)
    codes, difficulty = np.arange(cases) % 2, rng.random(cases)
    held_out, metric = HeldOut(codes, np.arange(cases)), find_metric("balanced_accuracy")
    weights, scores = held_out.weights(200, seed), []
    for budget in budgets:
        right_ = difficulty < law(budget) + rng.normal(0, 0.04, (draws, 1))
        said = np.where(right_, codes, 1 - codes)
        values = np.array([metric.score(codes, one, None, None) for one in said])
        resampled = np.array([metric.score(codes, one, None, weights) for one in said])
        scores.append(ResampledScores(values, resampled, held_out.units(metric), held_out.step(metric)))
    return LearningCurve("balanced_accuracy", 2, round(budgets[-1] / 0.8), tuple(budgets), tuple(scores))


LAWS = {
    "errors of a linear classifier": lambda k: stats.norm.cdf(1 / np.sqrt(0.3 + 14 / np.asarray(k, float))),
    "an inverse power of the metric": lambda k: 0.97 - 0.6 * np.asarray(k, float) ** -0.4,
    "an inverse power that is quick": lambda k: 0.93 - 1.0 * np.asarray(k, float) ** -0.8,
}


def true_more(law, goal: float, have: int) -> float:
    labels = np.arange(1.0, 1e6)
    met = law(labels) >= goal
    return max(labels[met.argmax()] - have, 0) if met.any() else np.inf


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    covered, identified = [], []
    for law in LAWS.values():
        for seed in range(14):
            curve = simulated(law, seed)
            for goal in (0.8, 0.85, 0.9):
                said, truth = labels_needed(curve, goal, level=0.9), true_more(law, goal, curve.have)
                covered.append(said.low <= truth and (said.high is None or truth <= said.high))
                identified.append(said.identified)
    covered, identified = np.array(covered), np.array(identified)
    assert covered.mean() >= 0.9 and covered[identified].mean() >= 0.9
    assert 0.2 < identified.mean() < 0.95  # neither silent nor always sure


def test_levels_ahead_lie_in_the_band_as_often_as_it_says():
    ahead = np.array([60, 150, 600])
    for law in LAWS.values():
        inside = []
        for seed in range(20, 40):
            low, high = np.quantile(learning_laws(simulated(law, seed)).levels(ahead), (0.05, 0.95), axis=0)
            inside.append((low < law(ahead)) & (law(ahead) < high))
        assert np.mean(inside) >= 0.8


def test_a_wider_level_gives_a_wider_interval_and_no_later_start():
    curve = simulated(LAWS["errors of a linear classifier"], 1)
    narrow, wide = (labels_needed(curve, 0.85, level=level) for level in (0.5, 0.9))
    assert wide.low <= narrow.low
    assert wide.high is None or (narrow.high is not None and narrow.high <= wide.high)


def test_a_ceiling_below_the_goal_gives_no_upper_end():
    stuck = lambda k: 0.8 - 0.9 * np.asarray(k, float) ** -1.0  # noqa: E731
    answers = [labels_needed(simulated(stuck, seed), 0.95) for seed in range(20)]
    assert not any(said.identified or said.reached for said in answers)
    assert all(said.high is None and "0.95" in said.why for said in answers)
    assert any("end" in said.why for said in answers)


def test_a_flat_curve_is_refused_and_a_flat_one_above_the_goal_is_not():
    flat = lambda k: 0.7  # noqa: E731
    answers = [labels_needed(simulated(flat, seed), 0.8) for seed in range(20)]
    assert not any(said.identified for said in answers)
    assert sum("does not clearly rise" in said.why for said in answers) >= 15
    above = labels_needed(simulated(lambda k: 0.9, 0), 0.75)
    assert above.reached and above.identified and above.high == 0 and "already" in above.why


def test_a_goal_far_beyond_the_labels_at_hand_is_no_plan():
    slow = LAWS["an inverse power of the metric"]
    said = [labels_needed(simulated(slow, seed, cases=1000), 0.95) for seed in range(5)]
    assert true_more(slow, 0.95, 75) > 8 * 75
    assert not any(one.identified for one in said)
    curve = simulated(slow, 0, cases=1000)
    near, nearer = (labels_needed(curve, 0.88, reach=reach) for reach in (8, 1.2))
    assert near.identified and near.have + near.high > 1.2 * near.have
    assert not nearer.identified and nearer.high is None and "more than 1.2 times" in nearer.why
    assert max(point.labels_per_class for point in nearer.band) <= 1.2 * curve.have + 1e-9


def test_too_few_budgets_and_impossible_goals():
    curve = simulated(LAWS["errors of a linear classifier"], 0, budgets=(10, 40))
    said = labels_needed(curve, 0.9)
    assert not said.identified and said.high is None and "3 or more" in said.why and said.band == ()
    for goal in (0.5, 0.3, 1.0, float("nan")):
        with pytest.raises(Refusal, match="above chance"):
            labels_needed(curve, goal)
    with pytest.raises(Refusal, match="level"):
        labels_needed(curve, 0.9, level=1.2)


def test_answers_are_finite_numbers_even_where_nothing_is_wrong():
    for law in (lambda k: 1.0, lambda k: 0.5, lambda k: 0.02):
        curve = simulated(law, 3)
        json.dumps(asdict(labels_needed(curve, 0.9)), allow_nan=False)
    assert labels_needed(simulated(lambda k: 1.0, 3), 0.9).reached
    assert not labels_needed(simulated(lambda k: 0.02, 3), 0.9).identified


def bells(cases: int, seed: int, gap: float = 1.2, features: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.arange(cases) % 2
    rows = rng.normal(size=(cases, features))
    rows[:, 0] += gap * (2 * codes - 1)
    return rows, codes


@pytest.mark.slow
def test_the_curve_is_that_of_heads_judged_on_ten_thousand_others():
    others, truth = bells(10_000, 99)
    level = []
    for seed in range(15):
        rows, codes = bells(24, 1000 + seed)
        said = choose_head(rows, codes, 2, seed=seed).head.predict_proba(others).argmax(1)
        level.append((said == truth).mean())
    inside, gaps = 0, []
    for seed in range(8):
        curve = learning_curve(*bells(80, seed), budgets=(12,), draws=6, seed=seed)
        one = curve.intervals()[-1]
        inside += one.low <= np.mean(level) <= one.high
        gaps.append(one.estimate - np.mean(level))
    assert inside >= 6 and abs(np.mean(gaps)) < 0.04


def test_cases_that_trained_never_judge():
    rng = np.random.default_rng(0)
    nonsense, coin = rng.normal(size=(60, 200)), np.arange(60) % 2
    curve = learning_curve(nonsense, coin, budgets=(24,), draws=10)
    assert abs(curve.means[-1] - 0.5) < 0.15  # 200 features fit any 60 labels


def test_patients_that_trained_never_judge():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(40), 4)
    coin = rng.permutation(np.arange(40) % 2)[patients]
    rows = rng.normal(size=(40, 60))[patients] + rng.normal(0, 0.01, (160, 60))
    leaky = learning_curve(rows, coin, draws=4, budgets=(32,))
    held = learning_curve(rows, coin, draws=4, budgets=(32,), groups=patients)
    assert leaky.means[-1] > 0.85 and abs(held.means[-1] - 0.5) < 0.17
    assert held.scores[0].units == 20  # patients of a class, not films


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answer():
    rows, codes = bells(60, 5)
    first, again, other = (
        learning_curve(rows, codes, budgets=(4, 10, 24), draws=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first.means == again.means and first.means != other.means
    assert labels_needed(first, 0.9) == labels_needed(again, 0.9)


def test_auc_has_a_curve_too_and_codes_may_have_gaps():
    rows, codes = bells(80, 6)
    curve = learning_curve(rows, 3 * codes + 1, draws=5, metric="auc", budgets=(4, 12, 30))
    assert curve.classes == 2 and curve.means[-1] > 0.85 and "AUC 0.80" in labels_needed(curve, 0.8).why


def test_what_has_no_curve_is_refused_with_what_would_have():
    rows, codes = bells(80, 7)
    few = np.concatenate([np.flatnonzero(codes == 0), np.flatnonzero(codes == 1)[: FLOOR - 1]])
    with pytest.raises(Refusal, match=f"{FLOOR} labels of each.*{FLOOR - 1} labels of the scarcest"):
        learning_curve(rows[few], codes[few])
    with pytest.raises(Refusal, match="at least 2 classes"):
        learning_curve(rows, np.zeros(80, dtype=int))
    with pytest.raises(Refusal, match="3 draws"):
        learning_curve(rows, codes, draws=2)
    with pytest.raises(Refusal, match="unlabelled"):
        learning_curve(rows, np.where(codes == 1, -1, 0))
    with pytest.raises(Refusal, match="balanced_accuracy or auc"):
        learning_curve(rows, codes, metric="accuracy")
    with pytest.raises(Refusal, match='mean "auc"'):
        learning_curve(rows, codes, metric="auk")
    with pytest.raises(Refusal, match="between 1 and 39"):
        learning_curve(rows, codes, budgets=(5, 10, 40))
    with pytest.raises(Refusal, match="one of each a case"):
        learning_curve(rows[:-1], codes)
    with pytest.raises(Refusal, match="sides need"):
        learning_curve(rows, codes, groups=codes)
    rows[[3, 9], 2] = np.nan, np.inf
    with pytest.raises(Refusal, match="Row 3 .* 1 more"):
        learning_curve(rows, codes)


def test_the_plot_says_what_the_answer_says():
    law = LAWS["errors of a linear classifier"]
    curve = simulated(law, 2)
    for goal in (0.75, 0.85, 0.98):
        needed = labels_needed(curve, goal)
        picture = learning_curve_plot(curve, needed)
        assert needed.why in picture.alt
        for width in (NARROW, 7.2):
            axes = picture.figure(width).axes[0]
            texts = [text.get_text() for text in axes.texts]
            assert f"goal {goal:.2f}" in texts and f"{curve.have} at hand" in texts
            assert axes.get_xlim()[1] > needed.band[-1].labels_per_class
    assert learning_curve_plot(curve).figure().axes[0].get_xlim()[1] < 2 * curve.have
    bare = simulated(law, 2, budgets=(10, 40))
    learning_curve_plot(bare, labels_needed(bare, 0.9)).png()
    with pytest.raises(Refusal, match="same curve"):
        learning_curve_plot(curve, labels_needed(bare, 0.9))


# Which to label next


def pool_on_a_line() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Labels at both ends, classes that change at 0, and a pool between."
    labelled = np.array([-3.0, -2.5, -2.0, 2.0, 2.5, 3.0])[:, None]
    return labelled, (labelled[:, 0] > 0).astype(int), np.random.default_rng(0).uniform(-3, 3, (200, 1))


@pytest.mark.parametrize("strategy", OF_A_HEAD)
def test_undecided_cases_are_those_nearest_to_the_border(strategy):
    labelled, codes, pool = pool_on_a_line()
    queue = label_queue(labelled, codes, pool, strategy=strategy, count=8)
    nearest = np.argsort(np.abs(pool[:, 0]))[:8]
    assert set(queue.cases) == set(nearest) and queue.cases[0] == nearest[0]


def test_uncertainty_looks_at_all_classes_and_margin_at_two():
    pixels, digits = load_digits(return_X_y=True)
    labelled = few_shot_draw(digits, 5, seed=3).train
    rest = np.setdiff1d(np.arange(len(digits)), labelled)
    spread = pixels[np.concatenate([labelled, rest])].std(0)
    kept = spread > 0
    given = choose_head(pixels[labelled][:, kept], digits[labelled], 10).head.predict_proba(
        pixels[rest][:, kept]
    )
    entropy = stats.entropy(given.T)
    ordered = np.sort(given, axis=1)
    gap = ordered[:, -1] - ordered[:, -2]
    queues = {
        strategy: label_queue(pixels[labelled], digits[labelled], pixels[rest], strategy=strategy, count=20)
        for strategy in OF_A_HEAD
    }
    assert len(set(queues["uncertainty"].cases) & set(np.argsort(-entropy)[:20])) >= 18
    assert len(set(queues["margin"].cases) & set(np.argsort(gap)[:20])) >= 18
    assert set(queues["margin"].cases) != set(queues["uncertainty"].cases)


def clouds(sizes=(40, 40, 40, 40, 40, 40), seed=0) -> tuple[np.ndarray, np.ndarray]:
    "Clouds around the corners of a hexagon."
    turn = np.arange(len(sizes)) * 2 * np.pi / len(sizes)
    centres = 6 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    cloud = np.repeat(np.arange(len(sizes)), sizes)
    return centres[cloud] + np.random.default_rng(seed).normal(0, 0.6, (len(cloud), 2)), cloud


def test_core_set_goes_to_the_farthest_case_again_and_again():
    rows, cloud = clouds()
    labelled, rest = rows[:1], rows[1:]
    queue = label_queue(labelled, [0], rest, strategy="core-set", count=12)
    assert set(cloud[1:][queue.cases[:5]]) == {1, 2, 3, 4, 5}
    scaled = rows / rows.std(0)
    chosen = [0]
    for case in queue.cases:
        gaps = np.linalg.norm(scaled[1:, None] - scaled[chosen][None], axis=2).min(1)
        assert gaps[case] == pytest.approx(gaps.max(), rel=1e-6)
        chosen.append(case + 1)


def test_typicality_takes_the_middle_of_clouds_without_labels_the_largest_first():
    rows, cloud = clouds((60, 30, 40, 50, 25, 35))
    labelled = np.flatnonzero(cloud == 0)[:1]
    rest = np.setdiff1d(np.arange(len(rows)), labelled)
    queue = label_queue(rows[labelled], [0], rows[rest], strategy="typicality", count=5)
    assert cloud[rest][queue.cases].tolist() == [3, 2, 5, 1, 4]
    for case in queue.cases:
        own = rows[cloud == cloud[rest][case]]
        far = np.linalg.norm(own - own.mean(0), axis=1)
        assert np.linalg.norm(rows[rest][case] - own.mean(0)) < np.quantile(far, 0.3)
    assert "none of them labelled" in queue.candidates[0].reason


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_case_once_in_the_same_order_for_the_same_seed(strategy):
    rows, cloud = clouds((12, 12, 12))
    labelled = np.array([0, 1, 12, 13])
    rest = np.setdiff1d(np.arange(36), labelled)

    def ask(seed):
        return label_queue(
            rows[labelled], cloud[labelled], rows[rest], strategy=strategy, count=len(rest), seed=seed
        )

    queue = ask(1)
    assert sorted(queue.cases) == list(range(len(rest))) and queue == ask(1)
    assert all(one.reason for one in queue.candidates) and len(queue.table()) == len(rest)
    if strategy == "random":
        assert queue != ask(2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_patient_is_asked_again_only_after_all_others(strategy):
    rows, cloud = clouds()
    labelled = np.array([0, 1, 40, 41])
    rest = np.setdiff1d(np.arange(len(rows)), labelled)
    patients = np.random.default_rng(0).integers(0, 12, len(rest))
    queue = label_queue(
        rows[labelled], cloud[labelled], rows[rest], strategy=strategy, count=30, groups=patients
    )
    turns = patients[queue.cases]
    assert len(set(turns[:12])) == 12 and len(set(turns[12:24])) == 12 and len(set(queue.cases)) == 30


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_units_and_constant_features_change_nothing(strategy):
    rows, cloud = clouds()
    labelled = np.array([0, 1, 40, 41])
    rest = np.setdiff1d(np.arange(len(rows)), labelled)

    def ask(table):
        return label_queue(
            table[labelled], cloud[labelled], table[rest], strategy=strategy, count=6
        ).cases.tolist()

    in_other_units = np.column_stack([rows * [1000, 0.001] + [5, -3], np.full(len(rows), 7.0)])
    assert ask(rows) == ask(in_other_units)


def test_what_cannot_be_queued_is_refused():
    labelled, codes, pool = pool_on_a_line()
    for strategy in OF_A_HEAD:
        with pytest.raises(Refusal, match="of 1 class: two are needed.*typicality"):
            label_queue(labelled[:3], codes[:3], pool, strategy=strategy)
    with pytest.raises(Refusal, match='mean "typicality"'):
        label_queue(labelled, codes, pool, strategy="typical")
    for count in (0, 201):
        with pytest.raises(Refusal, match="1 to 200"):
            label_queue(labelled, codes, pool, count=count)
    with pytest.raises(Refusal, match="one group a case"):
        label_queue(labelled, codes, pool, groups=np.arange(3))
    with pytest.raises(Refusal, match="same features"):
        label_queue(labelled, codes, np.hstack([pool, pool]))
    with pytest.raises(Refusal, match="unlabelled"):
        label_queue(labelled, np.where(codes, -1, 0), pool)
    pool[17] = np.nan
    with pytest.raises(Refusal, match="Row 17 of the pool"):
        label_queue(labelled, codes, pool)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in OF_A_HEAD])
def test_without_any_label_the_pool_alone_is_enough(strategy):
    rows, cloud = clouds()
    queue = label_queue(np.empty((0, 2)), [], rows, strategy=strategy, count=6)
    assert len(set(queue.cases)) == 6
    if strategy == "typicality":
        assert set(cloud[queue.cases]) == set(range(6))


# The command that holds answers against the truth


def test_the_truth_is_looked_up_on_the_measured_curve():
    truth = simulated(LAWS["an inverse power that is quick"], 0, cases=6000, budgets=(5, 10, 20, 40, 80, 160))
    goal = 0.86
    found, expected = true_labels(truth, goal), true_more(LAWS["an inverse power that is quick"], goal, 0)
    assert found == pytest.approx(expected, rel=0.25)
    assert true_labels(truth, 0.95) is None and true_labels(truth, 0.6) == 5


def test_an_answer_is_right_only_where_the_truth_lies_in_it():
    curve = simulated(LAWS["errors of a linear classifier"], 4)
    said = labels_needed(curve, 0.84)
    assert said.identified and said.high > said.low
    inside = said.have + (said.low + said.high) / 2
    assert right(said, inside, 10**4) == {"low_right": True, "high_right": True}
    assert not right(said, said.have + 2 * said.high, 10**4)["high_right"]
    assert not right(said, None, 10**4)["high_right"]
    open_ = labels_needed(curve, 0.97)
    assert open_.low > 0 and not right(open_, open_.have, 10**4)["low_right"]
