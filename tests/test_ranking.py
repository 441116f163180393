"""Scores of backbones against brute force and by hand, rankings that claim only what holds, and real chest films."""

from itertools import combinations

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.covariance import ledoit_wolf

from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.readers import read_folder
from tljupyter.evidence import h_score, leep, logme, n_leep, nce, probe_score, rank_backbones, score_audit
from tljupyter.evidence.ranking.costs import Cost, measure_cost
from tljupyter.evidence.ranking.groups import SCORES, deletions, jackknife_covariance, letters
from tljupyter.evidence.ranking.scores import components_for
from tljupyter.figures.ranking import ranking_plot, ranking_table
from tljupyter.measures.metrics import balanced_accuracy
from tljupyter.refusals import Refusal
from tljupyter.transfer.heads import choose_head
from tljupyter.transfer.probe import stage_features

PLAIN = {"logme": logme, "h_score": h_score, "n_leep": n_leep, "probe": probe_score}


def world(rng, labels, width, signal, informative=10, positive=True) -> np.ndarray:
    "Features of which the first few tell the classes apart."
    rows = rng.normal(size=(len(labels), width))
    towards = 2 * (labels[:, None] == np.arange(informative) % (labels.max() + 1)) - 1
    rows[:, :informative] += signal * towards
    return np.maximum(rows, 0) if positive else rows


def evidence_by_brute_force(features, labels, offset) -> float:
    "The multivariate normal density of every one-vs-rest target, maximised over both variances."
    basis = np.eye(len(labels))
    if offset:  # every direction in which a level common to all rows cannot be seen
        basis = np.linalg.svd(np.ones((1, len(labels))))[2][1:]
    found = []
    for code in np.unique(labels):
        seen, rows = basis @ (labels == code).astype(float), basis @ features

        def lost(logs, seen=seen, rows=rows):
            covariance = rows @ rows.T * np.exp(-logs[0]) + np.eye(len(rows)) * np.exp(-logs[1])
            return -stats.multivariate_normal.logpdf(seen, cov=covariance)

        starts = [(a, b) for a in (-2.0, 1.0, 4.0) for b in (0.0, 2.0)]
        best = min(optimize.minimize(lost, start, method="Nelder-Mead").fun for start in starts)
        found.append(-best / len(labels))
    return float(np.mean(found))


def widely_copied_logme(features, labels) -> float:
    "The fixed point as it is often copied: all d weights are counted, but only min(n, d) directions are summed."
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    squares, (count, width) = values**2, features.shape
    found = []
    for code in np.unique(labels):
        target = (labels == code).astype(float)
        seen = (left.T @ target) ** 2
        unseen, alpha, beta = target @ target - seen.sum(), 1.0, 1.0
        for _ in range(11):
            ratio = alpha / beta
            effective = (squares / (squares + ratio)).sum()
            length = (squares * seen / (ratio + squares) ** 2).sum()
            error = (seen / (1 + squares / ratio) ** 2).sum() + unseen
            alpha, beta = effective / (length + 1e-5), (count - effective) / (error + 1e-5)
        logs = width * np.log(alpha) + count * np.log(beta) - np.log(alpha + beta * squares).sum()
        found.append((logs - beta * error - alpha * length - count * np.log(2 * np.pi)) / 2 / count)
    return float(np.mean(found))


# --- LogME ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("count, width, classes", [(12, 3, 2), (8, 30, 2), (9, 20, 3), (10, 10, 2)])
def test_logme_is_the_largest_evidence(count, width, classes, offset):
    rng = np.random.default_rng(count + width)
    labels = np.arange(count) % classes
    features = world(rng, labels, width, 0.8, informative=3)
    expected = evidence_by_brute_force(features, labels, offset)
    assert logme(features, labels, offset=offset) == pytest.approx(expected, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("each", [5, 10, 20, 50])
def test_noise_of_2048_features_is_not_put_before_512_informative_ones(each, record_property):
    draws = 24
    right = dict.fromkeys(("copied", "logme", "logme with offset", "h_score", "h_score over chance"), 0)
    labels = np.repeat([0, 1], each)
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        told, noise = world(rng, labels, 512, 0.6), world(rng, labels, 2048, 0.0)
        for name, score in {
            "copied": widely_copied_logme,
            "logme": logme,
            "logme with offset": lambda f, y: logme(f, y, offset=True),
            "h_score": h_score,
            "h_score over chance": lambda f, y: h_score(f, y, over_chance=True),
        }.items():
            right[name] += score(told, labels) > score(noise, labels)
    shares = {name: count / draws for name, count in right.items()}
    record_property(f"share right at {each} labels a class", shares)
    print(each, shares)
    floor = {5: 0.55, 10: 0.65, 20: 0.8, 50: 0.95}[each]
    assert shares["copied"] <= 0.1 and shares["h_score"] <= 0.1
    assert min(shares[name] for name in ("logme", "logme with offset", "h_score over chance")) >= floor


def test_without_an_offset_noise_with_a_mean_beats_signal_without_one():
    labels, plain, free = np.repeat([0, 1], 20), 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        told = world(rng, labels, 512, 0.6, positive=False)
        noise = world(rng, labels, 512, 0.0)
        plain += logme(told, labels) > logme(noise, labels)
        free += logme(told, labels, offset=True) > logme(noise, labels, offset=True)
    assert plain <= 2 and free >= 11


@pytest.mark.parametrize("factor", [1e-200, 1e-12, 1.0, 1e150])
def test_scores_do_not_depend_on_the_unit_or_on_a_rotation(factor):
    rng, labels = np.random.default_rng(0), np.arange(24) % 2
    features = world(rng, labels, 40, 0.6)
    turn = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    for score in (logme, h_score, n_leep):
        assert score(features * factor, labels) == pytest.approx(score(features, labels), rel=1e-6)
        assert score(features @ turn, labels) == pytest.approx(score(features, labels), rel=1e-6)
    same = logme(np.hstack([features] * 5), labels)
    assert same == pytest.approx(logme(features, labels), rel=1e-9)  # five times the same is no better


def test_a_perfect_fit_stays_finite():
    labels = np.arange(20) % 2
    told = np.eye(2)[labels]
    assert np.isfinite(logme(told, labels)) and logme(told, labels) > 2


# --- H-score, LEEP, NCE, N-LEEP, probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("count, width, classes", [(30, 6, 3), (12, 40, 2)])
def test_h_score_is_the_trace_of_its_definition(count, width, classes):
    labels = np.arange(count) % classes
    features = world(np.random.default_rng(1), labels, width, 0.7, informative=4) * np.linspace(1, 5, width)
    covariance, shrunk = ledoit_wolf(features)
    means = np.stack([features[labels == code].mean(0) for code in range(classes)])[labels]
    expected = np.trace(np.linalg.solve(covariance, (1 - shrunk) * np.cov(means.T, bias=True)))
    assert h_score(features, labels) == pytest.approx(expected, rel=1e-8)


def test_h_score_over_chance_is_nothing_for_labels_dealt_at_random():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(15, 60)) * rng.exponential(size=60), np.repeat([0, 0, 1, 2, 2], 3)
    dealt = [rng.permutation(labels) for _ in range(1500)]
    over = np.array([h_score(features, one, over_chance=True) for one in dealt])
    plain = np.mean([h_score(features, one) for one in dealt[:200]])
    assert abs(over.mean()) < 4 * over.std() / np.sqrt(len(over)) and plain > 10 * abs(over.mean())


def test_leep_and_nce_by_hand():
    given = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0]])  # nobody resembles the third source class
    labels = np.array([0, 0, 1])
    first, second = np.array([1.5, 0.2]) / 1.7, np.array([0.5, 0.8]) / 1.3
    said = [
        0.9 * first[0] + 0.1 * second[0],
        0.6 * first[0] + 0.4 * second[0],
        0.2 * first[1] + 0.8 * second[1],
    ]
    assert leep(given, labels) == pytest.approx(np.log(said).mean(), rel=1e-12)
    answers, labels = np.array([7, 7, 7, 3, 3, -1]), np.array([0, 0, 1, 1, 1, 0])
    assert nce(answers, labels) == pytest.approx((2 * np.log(2 / 3) + np.log(1 / 3)) / 5, rel=1e-12)
    assert nce(labels, labels) == 0


def test_leep_and_nce_refuse_what_they_cannot_read():
    labels = np.array([0, 1, 0])
    with pytest.raises(Refusal, match=r"row 1 adds up to 1\.4"):
        leep(np.array([[0.5, 0.5], [0.7, 0.7], [1, 0]]), labels)
    with pytest.raises(Refusal, match="after its softmax"):
        leep(np.array([[2.0, -1.0], [0.5, 0.5], [1, 0]]), labels)
    with pytest.raises(Refusal, match="use LEEP"):
        nce(np.array([0.5, 0.2, 0.1]), labels)


def test_n_leep_finds_clusters_and_has_a_floor():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], 10)
    apart = rng.normal(size=(30, 50)) + 20 * rng.normal(size=(3, 50))[labels]
    assert n_leep(apart, labels) == pytest.approx(0, abs=1e-3)
    noise = np.mean([n_leep(rng.normal(size=(30, 50)), labels) for _ in range(5)])
    assert -np.log(3) - 0.05 < noise < -0.5
    assert components_for(20, 2) == 4 and components_for(6, 3) == 3 and components_for(500, 2) == 10
    with pytest.raises(Refusal, match="two rows a class on average"):
        n_leep(apart[[0, 10, 20, 21]], np.array([0, 1, 2, 2]))
    with pytest.raises(Refusal, match="from 1 to 15"):
        n_leep(apart, labels, components=16)


def test_the_probe_is_judged_on_rows_that_it_did_not_see():
    rng, labels = np.random.default_rng(0), np.arange(30) % 2
    noise = rng.normal(size=(30, 400))  # any head fits these rows perfectly
    said = choose_head(noise, labels, 2, seed=3).out_of_fold.argmax(1)
    assert probe_score(noise, labels, seed=3) == balanced_accuracy(labels, said)
    assert np.mean([probe_score(noise, rng.permutation(labels), seed=s) for s in range(6)]) < 0.7
    patient = np.arange(60) // 6
    looks = np.eye(10)[patient] + 0.01 * rng.normal(size=(60, 10))  # every patient has a look of their own
    alone, together = (probe_score(looks, patient % 2, groups=groups) for groups in (None, patient))
    assert alone > 0.95 and together < 0.6
    with pytest.raises(Refusal, match="two labelled rows at least"):
        probe_score(noise[:3], np.array([0, 0, 1]))


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_missing_labels_and_empty_features_give_a_number(name):
    rng, labels = np.random.default_rng(0), np.array([3, 8] * 10 + [-1, -1])
    features = world(rng, np.maximum(labels == 8, 0).astype(int), 30, 1.5)
    features[-1] = np.nan  # of a row that nobody labelled
    score = PLAIN[name]
    assert score(features, labels) == score(features[:20], labels[:20])
    for nothing in (np.zeros((22, 30)), np.full((22, 30), 4.0), np.full((22, 30), 1e-300)):
        found = score(nothing, labels)
        assert np.isfinite(found) and found < score(features, labels)
    some = features.copy()
    some[:, 10:] = 0  # features that are dead
    assert np.isfinite(score(some, labels))


@pytest.mark.parametrize("name", PLAIN)
def test_what_no_score_can_use_is_refused(name):
    features, labels = np.random.default_rng(0).normal(size=(12, 5)), np.arange(12) % 2
    score = PLAIN[name]
    with pytest.raises(Refusal, match="all 12 labelled rows are of one class"):
        score(features, np.zeros(12, dtype=int))
    with pytest.raises(Refusal, match="no row has a label"):
        score(features, np.full(12, -1))
    with pytest.raises(Refusal, match="12 labels need a table of 12 rows"):
        score(features[:10], labels)
    with pytest.raises(Refusal, match="one class code a row"):
        score(features, labels.astype(float))
    broken = features.copy()
    broken[7, 2] = np.inf
    with pytest.raises(Refusal, match="Row 7 of the features"):
        score(broken, labels)


# --- the ranking ------------------------------------------------------------------------------------------------------


def test_two_share_a_letter_exactly_when_they_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 9):
        for _ in range(20):
            apart = np.triu(rng.random((count, count)) < 0.4, 1)
            apart = apart | apart.T
            marks = letters(apart)
            assert marks[0].startswith("A")
            for i, j in combinations(range(count), 2):
                assert bool(set(marks[i]) & set(marks[j])) != apart[i, j]


def test_deletions_take_every_case_once_and_keep_groups_whole():
    labels = np.repeat([0, 1, 2], [30, 12, 6])
    blocks = deletions(labels, most=20)
    assert [len(b) for b in blocks] == [12, 5, 4]
    assert np.array_equal(np.sort(np.concatenate(sum(blocks, []))), np.arange(48))
    assert all((labels[block] == code).all() for code, of in enumerate(blocks) for block in of)
    groups = np.array([f"patient {i // 3}" for i in range(48)])
    groups[30] = "patient 0"  # one row of class 1 belongs to a patient of class 0
    for of_class in deletions(labels[:42], groups[:42]):
        for block in of_class:
            assert len(block) >= 2 and not set(groups[block]) & set(np.delete(groups[:42], block))
    with pytest.raises(Refusal, match="a class has 2 labelled groups, and 4 are needed"):
        deletions(labels, groups)


def test_the_jackknife_is_exact_for_means():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], [9, 15])
    rows = rng.normal(size=(24, 3)) * [1, 2, 3]
    score = lambda kept: [  # noqa: E731
        rows[kept][labels[kept] == 0, 0].mean() + rows[kept][labels[kept] == 1, 1].mean(),
        rows[kept][labels[kept] == 1, 2].mean(),
    ]
    found = jackknife_covariance(score, labels, deletions(labels))
    first, second = rows[:9], rows[9:]
    expected = first[:, 0].var(ddof=1) / 9 + second[:, 1].var(ddof=1) / 15
    shared = np.cov(second[:, 1], second[:, 2])[0, 1] / 15
    assert np.allclose(found, [[expected, shared], [shared, second[:, 2].var(ddof=1) / 15]])


@pytest.mark.slow
@pytest.mark.parametrize("score", ["logme", "h_score"])
def test_equals_are_seldom_told_apart_and_signal_is_told_from_noise(score):
    labels, worlds = np.repeat([0, 1], 10), 40
    alarms = found = wrong = 0
    for seed in range(worlds):
        rng = np.random.default_rng(seed)
        first, second, strong, nothing = (world(rng, labels, 128, s) for s in (0.6, 0.6, 1.0, 0.0))
        equal = rank_backbones({"first": first, "second": second}, labels, score=score)
        clear = rank_backbones({"nothing": nothing, "strong": strong}, labels, score=score)
        alarms += equal.verdict == "told apart"
        found += clear.best == ("strong",)
        wrong += clear.best == ("nothing",)
    assert alarms <= 5 and wrong == 0 and found >= 0.8 * worlds


@pytest.mark.parametrize("score", [*SCORES, "probe"])
def test_every_score_ranks(score):
    rng, labels = np.random.default_rng(2), np.append(np.repeat([0, 1, 2], 14), [-1, -1])
    known = np.maximum(labels, 0)
    good, bad = (world(rng, known, 60, signal, informative=9) for signal in (2.5, 0.0))
    if score in ("leep", "nce"):
        sure = np.where(rng.random(44) < 0.9, known, rng.integers(0, 3, 44))
        guess = rng.integers(0, 3, 44)
        good, bad = (np.eye(3)[one] * 0.9 + 0.1 / 3 for one in (sure, guess))
        if score == "nce":
            good, bad = sure, guess
    ranking = rank_backbones({"bad": bad, "good": good, "also good": good.copy()}, labels, score=score)
    assert set(ranking.names[:2]) == {"good", "also good"} and ranking.labels == 42 and ranking.notes == ()
    assert ranking.tell("good", "also good") == "cannot tell" and ranking.tell("bad", "good") == "good"
    assert ranking.verdict == "cannot tell" and "Cannot tell which is best" in str(ranking)
    first, twin, last = ranking.rows
    assert first.behind == first.behind_low == first.behind_high == 0 and first.letters == twin.letters == "A"
    assert last.letters == "B" and 0 < last.behind_low < last.behind < last.behind_high
    assert all(np.isfinite([row.score, row.low, row.high]).all() for row in ranking.rows)
    again = rank_backbones({"good": good, "bad": bad}, labels, score=score)
    assert again.scores["good"] == pytest.approx(ranking.scores["good"], abs=1e-12)
    assert again.best == ("good",) and "clear of all others" in str(again)


def test_one_score_of_a_ranking_is_that_of_the_plain_function():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 12)
    wide = {"a": world(rng, labels, 300, 0.8), "b": world(rng, labels, 300, 0.2)}
    by = {
        score: rank_backbones(wide, labels, score=score).scores
        for score in ("logme", "h_score", "n_leep", "probe")
    }
    for name, rows in wide.items():
        assert by["logme"][name] == pytest.approx(logme(rows, labels, offset=True), rel=1e-6)
        assert by["h_score"][name] == pytest.approx(h_score(rows, labels, over_chance=True), rel=1e-6)
        assert by["n_leep"][name] == pytest.approx(n_leep(rows, labels), rel=1e-6)
        assert by["probe"][name] == probe_score(rows, labels)


def test_a_large_mean_does_not_hide_what_varies():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 12)
    given = {"a": world(rng, labels, 300, 0.8), "b": world(rng, labels, 60, 0.2)}
    lifted = {name: rows + 1e5 for name, rows in given.items()}
    for score in ("logme", "h_score"):
        plain, high = (rank_backbones(one, labels, score=score) for one in (given, lifted))
        assert [r.score for r in high.rows] == pytest.approx([r.score for r in plain.rows], rel=1e-6)
        assert [r.behind_low for r in high.rows] == pytest.approx(
            [r.behind_low for r in plain.rows], rel=1e-5
        )


def test_rows_of_one_patient_are_one_case():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], 8)
    strong, weak = world(rng, codes, 60, 1.2), world(rng, codes, 60, 0.3)
    eight = {name: np.repeat(rows, 6, axis=0) for name, rows in (("strong", strong), ("weak", weak))}
    labels, patients = np.repeat(codes, 6), np.repeat(np.arange(16), 6)
    naive, honest = (rank_backbones(eight, labels, groups=groups) for groups in (None, patients))
    width = lambda ranking: ranking.rows[1].behind_high - ranking.rows[1].behind_low  # noqa: E731
    assert honest.units == 16 and naive.units == 96 and width(honest) > 2 * width(naive)


def test_features_that_say_nothing_rank_last_together():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 12)
    given = {"zero": np.zeros((24, 40)), "constant": np.ones((24, 9)), "told": world(rng, labels, 40, 1.5)}
    for score in ("logme", "h_score", "n_leep", "probe"):
        ranking = rank_backbones(given, labels, score=score)
        assert ranking.names[0] == "told" and ranking.tell("zero", "constant") == "cannot tell"
        assert all(np.isfinite([r.score, r.low, r.high, r.behind_low]).all() for r in ranking.rows)


def test_bad_requests_are_refused_by_name():
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], 8)
    good = world(rng, labels, 20, 1.0)
    with pytest.raises(Refusal, match='Did you mean "logme"'):
        rank_backbones({"a": good}, labels, score="logmee")
    with pytest.raises(Refusal, match="nothing to rank"):
        rank_backbones({}, labels)
    with pytest.raises(Refusal, match="^short: 16 labels need a table of 16 rows"):
        rank_backbones({"a": good, "short": good[:9]}, labels)
    with pytest.raises(Refusal, match='cost of "b" but no features'):
        rank_backbones({"a": good}, labels, costs={"b": Cost(1, 1.0, 1, "cpu", 1)})
    with pytest.raises(Refusal, match="a class has 2 labelled rows, and 4 are needed"):
        rank_backbones({"a": good[:10]}, labels[:10])
    with pytest.raises(Refusal, match="bootstraps = 1"):
        rank_backbones({"a": good}, labels, bootstraps=1)
    with pytest.raises(Refusal, match='"c" was not ranked'):
        rank_backbones({"a": good}, labels).tell("a", "c")
    assert "only candidate" in str(rank_backbones({"a": good}, labels))
    wide = rank_backbones({"a": good, "wide": world(rng, labels, 90, 1.0)}, labels, score="h_score")
    assert "from 20 (a) to 90 (wide) features" in wide.notes[0]


# --- costs ------------------------------------------------------------------------------------------------------------


def test_cost_counts_parameters_and_the_memory_that_is_held():
    backbone = load_backbone("small_groupnorm", weights="random")
    cost = measure_cost(backbone, seconds=0)
    maps = 16 * 64 * 64 * 4  # bytes of the first convolution's result
    assert cost.parameters == sum(p.numel() for p in backbone.module.parameters())
    assert 2 * maps <= cost.memory - 4 * cost.parameters < 5 * maps
    assert cost.milliseconds > 0 and cost.device == "cpu" and f"{cost.parameters:,} parameters" in str(cost)
    half = measure_cost(load_backbone("small_groupnorm", weights="random", input_size=32), seconds=0)
    less = (half.memory - 4 * half.parameters) / (cost.memory - 4 * cost.parameters)
    assert 0.2 < less < 0.3  # a quarter of the pixels
    with pytest.raises(Refusal, match="batch_size = 0"):
        measure_cost(backbone, batch_size=0)


def test_of_equals_the_fastest_is_named_and_drawn():
    rng, labels = np.random.default_rng(1), np.repeat([0, 1], 15)
    strong = world(rng, labels, 50, 1.5)
    given = {
        "large": strong,
        "<small>": strong + 0.01 * rng.normal(size=strong.shape),
        "noise": world(rng, labels, 50, 0),
    }
    costs = {"large": Cost(11_000_000, 20.0, 2**26, "cpu", 2), "<small>": Cost(700_000, 5.0, 2**22, "cpu", 2)}
    ranking = rank_backbones(given, labels, costs=costs)
    assert set(ranking.best) == {"large", "<small>"} and ranking.cheapest == "<small>"
    assert rank_backbones(given, labels).cheapest is None
    table, picture = ranking_table(ranking), ranking_plot(ranking)
    assert "&lt;small&gt; is the fastest here" in table and "<small>" not in table and "700 k" in table
    texts = {text.get_text() for text in picture.figure(3.65).axes[0].texts}
    assert "A\n5 ms, 700 k" in texts and "B\n–" in texts and "Cannot tell" in picture.alt
    assert "parameters" not in ranking_table(rank_backbones(given, labels))


# --- the audit --------------------------------------------------------------------------------------------------------


def test_the_audit_says_how_well_a_score_predicted():
    names = list("abcdefgh")
    measured = {name: 0.6 + 0.04 * i for i, name in enumerate(names)}
    right, turned = ({n: sign * i for i, n in enumerate(names)} for sign in (1.0, -1.0))
    level = dict.fromkeys(names, 0.3)
    good, bad, flat = score_audit({"right": right, "turned": turned, "flat": level}, measured)
    assert (good.verdict, good.regret) == ("predicts", 0.0) and good.low < 0.9 < good.tau <= good.high
    assert bad.verdict == "misleads" and bad.tau == pytest.approx(-1) and bad.regret == pytest.approx(0.28)
    assert (flat.tau, flat.low, flat.verdict) == (None, None, "cannot tell") and "level" in str(flat)
    few = score_audit({"right": right}, {n: measured[n] for n in "abcd"})[0]
    assert (
        few.tau == pytest.approx(1)
        and few.low is None
        and few.verdict == "cannot tell"
        and "5 are needed" in str(few)
    )
    gaps = score_audit({"right": right}, {**measured, "a": None, "b": float("nan")})[0]
    assert gaps.backbones == 6
    with pytest.raises(Refusal, match="1 backbones have both"):
        score_audit({"right": {"a": 1.0, "z": 2.0}}, measured)


def test_the_interval_of_the_audit_covers():
    rng, count, correlation = np.random.default_rng(0), 8, 0.7
    true, covered = 2 / np.pi * np.arcsin(correlation), 0
    for _ in range(300):
        score = rng.normal(size=count)
        later = correlation * score + np.sqrt(1 - correlation**2) * rng.normal(size=count)
        names = range(count)
        audit = score_audit(
            {"s": dict(zip(names, score, strict=True))}, dict(zip(names, later, strict=True))
        )[0]
        covered += audit.low <= true <= audit.high
    assert 0.89 <= covered / 300 <= 0.99


# --- real films -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def films(data_dir):
    "Features of 160 children's films by four networks, 60 of the films labelled; and what a head is worth later."
    import torch

    domain, weights = read_folder(data_dir / "lung_kermany_pediatric"), data_dir / "weights_small_pretrained"
    rng, each = np.random.default_rng(0), []
    for code in (0, 1):  # one film of a patient
        rows = rng.permutation(np.flatnonzero(domain.labels == code))
        _, first = np.unique(domain.groups[rows], return_index=True)
        each.append(rows[np.sort(first)][:80])
    domain = domain.take(np.concatenate(each))
    backbones = {
        "squeezenet": load_backbone("squeezenet1_0", weights / "squeezenet1_0_imagenet.safetensors", 64),
        "squeezenet, random": load_backbone("squeezenet1_0", "random", 64),
        "resnet20": load_backbone("resnet20_cifar", weights / "resnet20_cifar10.npz", 64),
        "mobilenet, random": load_backbone("mobilenet_v3_small", "random", 64),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    try:
        features = {name: stage_features(backbone, domain.items) for name, backbone in backbones.items()}
        costs = {name: measure_cost(backbone, seconds=0) for name, backbone in backbones.items()}
    finally:
        torch.set_num_threads(before)
    few = np.r_[0:30, 80:110]
    later = np.setdiff1d(np.arange(160), few)
    measured = {}
    for name, rows in features.items():
        said = choose_head(rows[few], domain.labels[few], 2).head.predict_proba(rows[later]).argmax(1)
        measured[name] = float(balanced_accuracy(domain.labels[later], said))
    return {name: rows[few] for name, rows in features.items()}, domain.labels[few], costs, measured


@pytest.mark.slow
@pytest.mark.parametrize("score", ["logme", "probe", "n_leep"])
def test_on_real_films_what_is_told_apart_holds_later(films, score, record_property):
    features, labels, costs, measured = films
    ranking = rank_backbones(features, labels, score=score, costs=costs)
    record_property(score, {row.name: (round(row.score, 3), row.letters) for row in ranking.rows})
    assert max(measured[name] for name in ranking.best) > max(measured.values()) - 0.05
    for first, second in combinations(features, 2):
        better = ranking.tell(first, second)
        if better != "cannot tell":
            worse = second if better == first else first
            assert measured[better] > measured[worse] - 0.05
    assert ranking.rows[-1].name == "mobilenet, random" and measured["mobilenet, random"] < 0.6
    assert costs["squeezenet"].parameters == 735_424 and ranking.cheapest in ranking.best


def test_on_real_films_the_audit_knows_that_four_are_few(films):
    features, labels, _, measured = films
    scores = {score: rank_backbones(features, labels, score=score).scores for score in ("logme", "probe")}
    for audit in score_audit(scores, measured):
        assert audit.verdict == "cannot tell" and audit.tau > 0 and audit.regret < 0.2
