"""Weighing cases: the estimators against skada, the boosters, and inputs at the edge."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import clone
from sklearn.metrics.pairwise import rbf_kernel
from threadpoolctl import threadpool_limits

from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.refusals import Refusal
from tljupyter.transfer.instance.boosting import TrAdaBoost, sharpened, sharpening
from tljupyter.transfer.instance.diagnostics import collapse_note, effective_sample_size, weight_report
from tljupyter.transfer.instance.regression import TrAdaBoostR2, TwoStageTrAdaBoostR2
from tljupyter.transfer.instance.reweighting import Reweighted, with_target_share
from tljupyter.transfer.instance.weights import (
    KLIEP,
    RATIOS,
    KernelMeanMatching,
    NearestNeighbourRatio,
    RuLSIF,
    find_ratio,
    median_distance,
    standardised,
)
from tljupyter.transfer.pooling import Pooled, SourceOnly, TargetOnly


@pytest.fixture(autouse=True)
def one_thread():
    "Many small systems: on a busy machine, threads that wait for one another take many times as long."
    with threadpool_limits(1):
        yield


def domain(rows, labels, classes=("no", "yes"), name="toy", groups=None) -> Domain:
    rows, labels = np.asarray(rows, dtype=float), np.asarray(labels)
    names = np.array([f"{name} {i}" for i in range(len(rows))])
    return Domain(name, ArrayItems(rows), labels, classes, groups, None, names, "table")


def world(count, seed, classes=2, features=4, shift=0.0) -> Domain:
    rng = np.random.default_rng(seed)
    codes = np.arange(count) % classes
    rows = rng.normal(size=(count, features))
    rows[:, : min(classes, features)] += 2 * np.eye(classes)[codes][:, :features]
    rows[:, -1] += shift
    return domain(rows, codes, tuple("abcdef"[:classes]))


def numbers(count, seed, shift=0.0) -> Domain:
    rng = np.random.default_rng(seed)
    rows = rng.normal(shift, 1, (count, 3))
    return domain(rows, rows[:, 0] + np.abs(rows[:, 1]) + 0.1 * rng.normal(size=count), ())


CLASSIFIERS = {ratio: lambda ratio=ratio: Reweighted(ratio=ratio) for ratio in RATIOS} | {
    "estimator": lambda: Reweighted(ratio=RuLSIF(alpha=0.5, centres=10), target_share=0.5),
    "boosted heads": lambda: TrAdaBoost(rounds=4),
    "boosted trees": lambda: TrAdaBoost(base="tree", rounds=4, dynamic=False),
}
REGRESSORS = {
    "R2": lambda: TrAdaBoostR2(rounds=5),
    "two-stage": lambda: TwoStageTrAdaBoostR2(steps=3, rounds=3, folds=2),
}


# ---- weights


@pytest.mark.parametrize("name", RATIOS)
def test_weights_are_repeatable_of_mean_one_and_lean_to_the_target(name):
    rng = np.random.default_rng(0)
    source, target = rng.normal(0, 1, (300, 3)), rng.normal(0.7, 1, (80, 3))
    weights = RATIOS[name].weigh(source, target, 3)
    assert weights.shape == (300,) and (weights >= 0).all() and np.isclose(weights.mean(), 1)
    assert np.array_equal(weights, RATIOS[name].weigh(source, target, 3))
    if name != "uniform":
        assert np.average(source.mean(1), weights=weights) > source.mean() + 0.15
    units = np.array([1e4, 1e-3, 7.0])
    assert np.allclose(weights, RATIOS[name].weigh(source * units + 5, target * units + 5, 3), atol=1e-3)


def of_skada(adapter, source, target):
    rows, side = np.concatenate([source, target]), np.repeat([1, -2], [len(source), len(target)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adapter.fit(rows, sample_domain=side).compute_weights(rows, sample_domain=side)[: len(source)]


def test_kernel_mean_matching_agrees_with_skada():
    from skada import KMMReweightAdapter

    rng = np.random.default_rng(1)
    source, target = standardised(rng.normal(0, 1, (40, 2)), rng.normal(0.5, 0.7, (50, 2)))
    width = median_distance(np.concatenate([source, target]))
    gamma, slack = 0.5 / width**2, 1 - 1 / np.sqrt(40)
    theirs = of_skada(KMMReweightAdapter(gamma=gamma, B=10.0, solver="scipy"), source, target)
    ours = KernelMeanMatching(slack=slack, most_steps=5000).weigh(source, target)
    kernel, pull = rbf_kernel(source, gamma=gamma), rbf_kernel(source, target, gamma).mean(1)

    def gap(weights):  # between the two means in kernel space, squared
        share = weights / 40
        return share @ kernel @ share - 2 * share @ pull + rbf_kernel(target, gamma=gamma).mean()

    assert gap(np.ones(40)) > 10 * gap(ours)
    assert gap(ours) < gap(theirs) + 1e-4
    assert (
        abs(np.average(source, axis=0, weights=ours) - np.average(source, axis=0, weights=theirs)).max()
        < 0.05
    )


def test_neighbours_agree_with_skada_where_it_is_right():
    "skada 0.6 takes the last m rows for the target, which holds only where there are as many of both."
    from skada import NearestNeighborReweightAdapter

    rng = np.random.default_rng(2)
    source, target = standardised(rng.normal(0, 1, (60, 2)), rng.normal(0.5, 0.7, (60, 2)))
    theirs = of_skada(NearestNeighborReweightAdapter(laplace_smoothing=True), source, target)
    assert np.allclose(NearestNeighbourRatio().weigh(source, target), theirs / theirs.mean())


def test_likelihood_is_at_least_that_of_skada():
    from skada import KLIEPReweightAdapter

    rng = np.random.default_rng(3)
    source, target = standardised(rng.normal(0, 1, (200, 1)), rng.normal(1, 0.5, (100, 1)))
    unit = median_distance(np.concatenate([source, target]))
    adapter = KLIEPReweightAdapter(gamma=0.5 / unit**2, random_state=0)
    of_skada(adapter, source, target)

    from tljupyter.transfer.instance.weights import _mixture_heights

    at_target = rbf_kernel(target, adapter.centers_, adapter.best_gamma_)
    at_source = rbf_kernel(source, adapter.centers_, adapter.best_gamma_).mean(0)
    ours = _mixture_heights(at_target, at_source)
    assert np.isclose(at_source @ ours, 1) and (ours >= 0).all()
    assert np.log(at_target @ ours).mean() > np.log(at_target @ adapter.alpha_).mean()


def test_least_squares_solve_their_equations():
    rng = np.random.default_rng(4)
    at_source, at_target = rng.random((50, 5)), rng.random((20, 5))
    found = RuLSIF(alpha=0.3)._heights(at_source, at_target, (0.1, 1.0))
    second = 0.7 * at_source.T @ at_source / 50 + 0.3 * at_target.T @ at_target / 20
    for heights, ridge in zip(found, (0.1, 1.0), strict=True):
        assert np.allclose((second + ridge * np.eye(5)) @ heights, at_target.mean(0))


@pytest.mark.parametrize("name", [name for name in RATIOS if name != "uniform"])
def test_equal_domains_give_equal_weights(name):
    rows = np.random.default_rng(5).normal(size=(200, 2))
    weights = RATIOS[name].weigh(rows, rows.copy())
    assert effective_sample_size(weights) > 150


MATCHING = """
import json, time
from pathlib import Path
import numpy as np
from tljupyter.transfer.instance.weights import KernelMeanMatching
rng = np.random.default_rng(6)
source, target = rng.normal(0, 1, (5000, 20)), rng.normal(0.3, 1, (2000, 20))
began = time.perf_counter()
weights = KernelMeanMatching().weigh(source, target)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "gigabytes": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e6,
    "moved_to": float(np.average(source.mean(1), weights=weights)),
}))
"""


@pytest.mark.slow
def test_kernel_mean_matching_scales():
    "In a process of its own; the kernel's VmHWM is its own peak, where ru_maxrss would begin at the parent's."
    done = subprocess.run([sys.executable, "-c", MATCHING], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["seconds"] < 30 and found["gigabytes"] < 2 and found["moved_to"] > 0.2


def test_refusals_of_weights_name_the_fix():
    rows = np.zeros((3, 1))
    for call, words in (
        (lambda: find_ratio("ulsiv"), 'Did you mean "uLSIF"'),
        (lambda: KLIEP().weigh(rows, rows[:1]), "unlabelled items"),
        (lambda: KernelMeanMatching().weigh(np.zeros((20_001, 1)), rows), "subset"),
        (lambda: RuLSIF().weigh(np.zeros((200_000, 1)), rows), "subset"),
        (lambda: RuLSIF(alpha=1.0), "alpha"),
        (lambda: with_target_share(np.ones(3), 2, 1.5), "between 0 and 1"),
        (lambda: TrAdaBoost(base="stump").fit(world(8, 0), world(9, 1)), "stump"),
        (lambda: TwoStageTrAdaBoostR2().fit(numbers(1, 0), numbers(9, 1)), "TrAdaBoostR2"),
        (lambda: TrAdaBoostR2().fit(world(8, 0), world(9, 1)), "numbers"),
        (lambda: TrAdaBoostR2().fit(None, numbers(9, 1)), "labelled items"),
        (lambda: weight_report(TargetOnly().fit(world(8, 0)), world(9, 1)), "no weights"),
    ):
        with pytest.raises(Refusal, match=words):
            call()


# ---- the contract


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_contract(name, classes):
    source, target, test = world(90, 0, classes), world(12, 1, classes), world(60, 2, classes)
    method = CLASSIFIERS[name]()
    told = clone(method).fit(target, source, world(40, 3, classes)).predict_proba(test)
    assert told.shape == (60, classes) and np.allclose(told.sum(1), 1) and np.isfinite(told).all()
    again = clone(method).fit(target, source, world(40, 3, classes))
    assert np.array_equal(told, again.predict_proba(test))
    assert again.score(test, test.labels) > 1 / classes + 0.15
    assert again.out_of_fold_.shape == (12, classes) and np.isfinite(again.out_of_fold_).all()
    assert again.weights_.shape == (90,) and np.isfinite(again.weights_).all()
    kept = skops.io.dumps(again)
    loaded = skops.io.loads(kept, trusted=skops.io.get_untrusted_types(data=kept))
    assert np.array_equal(loaded.predict_proba(test), told)


def gaps(target, **changes):
    return {"target": target, "source": world(60, 0), "unlabelled": None, **changes}


EDGES = {
    "below the dimension": lambda: gaps(world(6, 1, features=40), source=world(30, 0, features=40)),
    "one of a class": lambda: gaps(domain(world(5, 1).items.array, [0, 0, 0, 0, 1], ("a", "b"))),
    "one of each": lambda: gaps(world(2, 1)),
    "one class": lambda: gaps(domain(world(4, 1).items.array, [1, 1, 1, 1], ("a", "b"))),
    "a class is missing": lambda: gaps(
        domain(world(6, 1, 3).items.array, [0, 1, 0, 1, 0, 1], tuple("abc")), source=world(60, 0, 3)
    ),
    "constant features": lambda: gaps(
        domain(np.ones((6, 2)), np.arange(6) % 2, ("a", "b")),
        source=domain(np.ones((20, 2)), np.arange(20) % 2, ("a", "b")),
    ),
    "same items": lambda: gaps(world(60, 0)),
    "apart": lambda: gaps(domain(world(8, 1).items.array + 1e6, np.arange(8) % 2, ("a", "b"))),
    "a source of one class": lambda: gaps(
        world(8, 1), source=domain(np.r_[np.zeros((30, 4)), np.ones((1, 4))], [0] * 30 + [1], ("a", "b"))
    ),
    "grouped": lambda: gaps(
        domain(world(8, 1).items.array, np.arange(8) % 2, ("a", "b"), groups=np.repeat(["p", "q"], 4))
    ),
    "one group": lambda: gaps(
        domain(world(8, 1).items.array, np.arange(8) % 2, ("a", "b"), groups=np.array(["p"] * 8))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_edges_give_probabilities(name, edge):
    given = EDGES[edge]()
    method = CLASSIFIERS[name]().fit(**given)
    told = method.predict_proba(given["target"])
    assert np.isfinite(told).all() and np.allclose(told.sum(1), 1)
    assert np.isfinite(method.weights_).all() and (method.weights_ >= 0).all()


def test_one_target_row_is_refused_or_works():
    alone, source = world(1, 1), world(60, 0)
    with pytest.raises(Refusal, match="unlabelled items"):
        Reweighted().fit(alone, source)
    assert np.isfinite(Reweighted().fit(alone, source, world(20, 2)).predict_proba(source)).all()
    assert TrAdaBoost(rounds=2).fit(alone, source).notes_[-1].endswith("not calibrated.")


# ---- what they are for


def test_equal_weights_are_pooling():
    source, target = world(80, 0), world(12, 1)
    equal, pooled = Reweighted(ratio="uniform").fit(target, source), Pooled().fit(target, source)
    assert np.allclose(equal.predict_proba(source), pooled.predict_proba(source), atol=1e-6)
    equal, pooled = (
        m(target_share=0.5).fit(target, source)
        for m in (lambda **k: Reweighted(ratio="uniform", **k), Pooled)
    )
    assert np.allclose(equal.predict_proba(source), pooled.predict_proba(source), atol=1e-6)


def curve(count, seed, centre):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.normal(centre, 1 if centre == 0 else 0.4, count), rng.normal(0, 2, count)])
    rows[:, 1] += rows[:, 0] ** 2
    return domain(rows, (rows[:, 1] > rows[:, 0] ** 2).astype(np.int64))


def test_without_target_labels():
    source, unlabelled, test = curve(500, 0, 0), curve(200, 1, 1.5), curve(500, 2, 1.5)
    weighted = Reweighted().fit(None, source, unlabelled)
    equal = Reweighted(ratio="uniform").fit(None, source, unlabelled)
    assert weighted.out_of_fold_ is None and equal.out_of_fold_ is None
    assert weighted.score(test, test.labels) > equal.score(test, test.labels) + 0.05


def test_gain_over_uniform_is_paired_and_sees_a_large_gain():
    gain = Reweighted(ratio="KLIEP").gain_over_uniform(
        curve(60, 3, 1.5), curve(500, 0, 0), curve(200, 1, 1.5)
    )
    assert gain.low > 0
    same = Reweighted(ratio="uniform").gain_over_uniform(curve(60, 3, 1.5), curve(500, 0, 0))
    assert same.estimate == 0
    with pytest.raises(Refusal, match="two of each class"):
        Reweighted().gain_over_uniform(curve(60, 3, 1.5).take([0]), curve(500, 0, 0), curve(200, 1, 1.5))


def test_collapse_is_told():
    far = domain(world(8, 1).items.array + 4, np.arange(8) % 2, ("a", "b"))
    method = Reweighted(ratio="KLIEP").fit(
        far, world(400, 0), domain(world(100, 2).items.array + 4, np.arange(100) % 2, ("a", "b"))
    )
    assert any("effective sample size" in note for note in method.notes_)
    assert collapse_note(np.ones(50)) is None and "100%" in collapse_note(np.eye(50)[0])


def test_report_names_cases_and_follows_the_classes_of_the_target():
    source = world(90, 0, 3)
    target = domain(world(12, 1).items.array, np.arange(12) % 2, ("b", "a"))
    method = Reweighted().fit(target, source)
    report = weight_report(method, source, most=3)
    assert report.cases == 60 and set(report.rows_by_class) == {"a", "b"}
    assert np.isclose(sum(report.weight_by_class.values()), 1) and len(report.heaviest) == 3
    heaviest = int(report.heaviest[0][0].split()[-1])
    assert source.labels[heaviest] < 2 and "Heaviest: toy" in str(report)
    with pytest.raises(Refusal, match="fitted to"):
        weight_report(method, world(50, 0))


# ---- boosting


def contrary(count, seed, share):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 10))
    codes = (rows[:, :4].sum(1) + 0.5 * rng.normal(size=count) > 0).astype(np.int64)
    turned = rng.random(count) < share
    return domain(rows, np.where(turned, 1 - codes, codes)), turned


def test_turned_cases_lose_weight():
    (source, turned), (target, _) = contrary(300, 0, 0.4), contrary(20, 1, 0)
    for base in ("head", "tree"):
        weights = TrAdaBoost(base=base, rounds=8).fit(target, source).weights_
        assert weights[~turned].mean() > 1.5 * weights[turned].mean()


def test_the_dynamic_update_keeps_the_source():
    (source, _), (target, _) = contrary(300, 0, 0.1), contrary(40, 1, 0)
    kept, faded = (
        TrAdaBoost(base="tree", rounds=15, dynamic=dynamic).fit(target, source).source_share_
        for dynamic in (True, False)
    )
    assert kept > faded


@pytest.mark.slow
def test_few_labels_beat_the_target_alone_and_the_pool_and_many_need_no_source():
    "What Dai et al. 2007 report: the gain is largest with few target labels and gone with many."
    test, _ = contrary(1000, 999, 0)
    scores = {
        labels: np.array(
            [
                [
                    method.fit(contrary(labels, 100 + draw, 0)[0], contrary(400, draw, 0.45)[0]).score(
                        test, test.labels
                    )
                    for method in (TrAdaBoost(rounds=10), TargetOnly(), Pooled())
                ]
                for draw in range(12)
            ]
        )
        for labels in (15, 400)
    }
    for other in (1, 2):
        gain = scores[15][:, 0] - scores[15][:, other]
        assert gain.mean() > 2.2 * gain.std(ddof=1) / np.sqrt(12)  # t with 11 degrees of freedom, 95 %
    assert scores[400][:, 1].mean() > scores[400][:, 0].mean()


def test_what_the_rounds_are_worth_is_asked_in_the_same_folds():
    (source, _), (target, _) = contrary(400, 0, 0.45), contrary(60, 1, 0)
    gain = TrAdaBoost(rounds=10).gain_over_uniform(target, source)
    assert gain.low <= gain.estimate <= gain.high and gain.estimate != 0
    assert TrAdaBoost(rounds=1).gain_over_uniform(target, source).estimate == 0
    method = TrAdaBoost(rounds=10).fit(target, source)
    assert 1 <= method.effective_sample_size_ <= 400
    with pytest.raises(Refusal, match="two of each class"):
        TrAdaBoost(rounds=2).gain_over_uniform(target.take([0, 1]), source)


def test_boosting_that_rests_on_a_few_cases_says_so():
    (source, _), (target, _) = contrary(400, 0, 0.98), contrary(40, 1, 0)
    method = TrAdaBoost(base="tree", rounds=60).fit(target, source)
    assert method.effective_sample_size_ < 20 and "rest on few source cases" in method.notes_[-1]


def test_first_round_by_hand():
    "One round of the paper's update, on stumps whose mistakes are known."
    source = domain([[0.0], [1.0], [0.0], [1.0]], [0, 1, 0, 0])
    target = domain([[0.0], [1.0], [1.0], [0.0]], [0, 1, 1, 1])
    method = TrAdaBoost(base="tree", depth=1, rounds=1, dynamic=False, target_share=None).fit(target, source)
    # class sums are equal in each domain: source 0 weighs 2/3, 1 weighs 2; target 0 weighs 2, 1 weighs 2/3
    assert np.isclose(method.errors_[0], (2 / 3) / 4)
    fade = 1 / (1 + np.sqrt(2 * np.log(4) / 1))
    expected = np.array([2 / 3, 2, 2 / 3, 2 / 3 * fade])
    assert np.allclose(method.weights_, expected / expected.mean())
    assert np.isclose(method.votes_[0], np.log((1 - 1 / 6) / (1 / 6)))


def test_a_source_worse_than_chance_leaves_the_target():
    (source, _), (target, _) = contrary(400, 0, 1.0), contrary(8, 1, 0)
    method = TrAdaBoost(target_share=None, rounds=5).fit(target, source)
    assert "only a learner of the target cases is left" in " ".join(method.notes_)
    assert method.score(target, target.labels) > 0.8


def test_sharpening_keeps_order_and_doubt():
    shares = np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    factor = sharpening(shares, np.array([0, 1, 0]))
    told = sharpened(shares, factor)
    assert (told.argmax(1) == shares.argmax(1)).all() and told.max() < 1 and np.allclose(told.sum(1), 1)
    assert sharpening(shares, np.array([1, 0, 1])) < factor


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors(name):
    source, target, test = numbers(120, 0, 0.5), numbers(12, 1), numbers(80, 2)
    method = REGRESSORS[name]()
    told = clone(method).fit(target, source).predict(test)
    again = clone(method).fit(target, source)
    assert np.array_equal(told, again.predict(test)) and np.isfinite(told).all()
    assert again.score(test, test.labels) > 0.3
    assert again.weights_.shape == (120,) and np.isfinite(again.weights_).all()
    kept = skops.io.dumps(again)
    loaded = skops.io.loads(kept, trusted=skops.io.get_untrusted_types(data=kept))
    assert np.array_equal(loaded.predict(test), told)
    report = weight_report(again, source, most=2)
    assert report.cases == 120 and not report.rows_by_class and "By class" not in str(report)
    flat = domain(np.ones((6, 3)), np.ones(6), ())
    assert np.allclose(clone(method).fit(flat, flat).predict(flat), 1)


# ---- real data


@pytest.fixture(scope="module")
def hospitals(data_folder):
    if data_folder is None or not (data_folder / "bio_heart_4hospitals").exists():
        pytest.skip("real data set bio_heart_4hospitals is not on this machine")
    table = pd.read_csv(data_folder / "bio_heart_4hospitals" / "heart.csv")
    columns = ["age", "sex", "cp", "trestbps", "thalach", "exang", "oldpeak", "restecg"]

    def site(name):
        rows = table[table.site == name]
        filled = rows[columns].fillna(table[columns].median()).to_numpy(float)
        return domain(filled, rows.disease.to_numpy(np.int64), ("healthy", "ill"), name)

    return site


def test_two_hospitals(hospitals):
    source, there = hospitals("cleveland"), hospitals("hungarian")
    drawn = few_shot_draw(there.labels, 5, 0).train
    test = there.take(np.setdiff1d(np.arange(len(there)), drawn))
    reference = SourceOnly().fit(there.take(drawn), source).score(test, test.labels)
    for ratio in ("uLSIF", "KLIEP", "kernel mean matching"):
        method = Reweighted(ratio=ratio).fit(there.take(drawn), source, test)
        assert 5 < method.effective_sample_size_ < 250
        assert method.score(test, test.labels) > reference - 0.06
    report = weight_report(method, source)
    assert report.heaviest[0][0].startswith("cleveland") and report.cases == 303
    boosted = TrAdaBoost(rounds=8).fit(there.take(drawn), source)
    assert boosted.score(test, test.labels) > 0.6
