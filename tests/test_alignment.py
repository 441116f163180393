"""Alignment of domains, heads drawn to the source's, adaptation without source rows, and the size of a shift."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import skops.io
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score

from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.domains.readers import read_arrays
from tljupyter.measures.shift import proxy_a_distance, shift_size
from tljupyter.refusals import Refusal
from tljupyter.transfer.alignment import selection
from tljupyter.transfer.alignment.augmented import Augmented, augment
from tljupyter.transfer.alignment.linear import (
    CORAL,
    SubspaceAlignment,
    TransferComponentAnalysis,
    shrunk_towards,
    transfer_components,
)
from tljupyter.transfer.alignment.source_free import (
    FeatureStatistics,
    SourceFree,
    adapted,
    information_maximised,
    recentred,
)
from tljupyter.transfer.alignment.transport import OptimalTransport, transport_plan
from tljupyter.transfer.heads import SolvedHead, solve_head
from tljupyter.transfer.pooling import Pooled, SourceOnly, TargetOnly
from tljupyter.transfer.shrinkage import ShrunkToSource, solve_towards

METHODS = {
    "CORAL": lambda: CORAL(),
    "CORAL, Ledoit-Wolf": lambda: CORAL(shrinkage="ledoit-wolf"),
    "subspace alignment": lambda: SubspaceAlignment(),
    "transfer components": lambda: TransferComponentAnalysis(dimensions=10),
    "optimal transport": lambda: OptimalTransport(),
    "exact transport": lambda: OptimalTransport(entropy=0),
    "classes apart": lambda: OptimalTransport(class_separation=0.2),
    "augmented": lambda: Augmented(),
    "shrunk to source": lambda: ShrunkToSource(),
    "statistics": lambda: SourceFree(adaptation="statistics"),
    "information maximisation": lambda: SourceFree(),
}
WITHOUT_LABELS = [name for name in METHODS if name not in ("augmented", "shrunk to source")]
every = pytest.mark.parametrize("name", METHODS)


def world(labels, seed: int, shift: float = 0.0, width: int = 5, name: str = "rows") -> Domain:
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    rows = rng.normal(scale=0.7, size=(len(labels), width))
    rows[np.arange(len(labels)), labels] += 2.5
    names = np.array([f"{name} {i}" for i in range(len(labels))])
    return Domain(name, ArrayItems(rows + shift), labels, ("a", "b", "c"), None, None, names, "table")


def each(count: int) -> np.ndarray:
    return np.repeat([0, 1, 2], count)


def hidden(domain: Domain) -> Domain:
    return replace(domain, labels=np.full(len(domain), -1))


@pytest.mark.slow
@every
def test_repeats_is_cloned_and_saved_without_pickle(name):
    target, source, pool = world(each(4), 1, 0.5), world(each(25), 2), hidden(world(each(15), 3, 0.5))
    test = world(each(20), 4, 0.5)
    model = METHODS[name]()
    told = model.fit(target, source, pool).predict_proba(test)
    assert (told.argmax(1) == test.labels).mean() > 0.7
    np.testing.assert_array_equal(told, clone(model).fit(target, source, pool).predict_proba(test))
    # New rows go through the map that was learned: what is said of a row does not depend on the others.
    np.testing.assert_allclose(told[:3], model.predict_proba(test.take([0, 1, 2])), atol=1e-9)
    data = skops.io.dumps(model)
    again = skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    np.testing.assert_array_equal(told, again.predict_proba(test))
    assert all(kind.startswith("tljupyter.") for kind in skops.io.get_untrusted_types(data=data))


@pytest.mark.slow
@every
@pytest.mark.parametrize("width", [3, 60])
@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 2], [1, 1]])
def test_scarce_labels_and_wide_rows(name, labels, width):
    source, test = world(each(10), 2, width=width), world(each(5), 4, 0.5, width)
    for pool in (hidden(world(each(6), 3, 0.5, width)), None):
        try:
            told = METHODS[name]().fit(world(labels, 1, 0.5, width), source, pool).predict_proba(test)
        except Refusal as refusal:
            assert len(str(refusal)) > 40
            continue
        assert np.isfinite(told).all() and np.allclose(told.sum(1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_no_target_label_is_needed(name):
    source, pool, test = world(each(25), 2), hidden(world(each(20), 3, 0.5)), world(each(20), 4, 0.5)
    model = METHODS[name]().fit(None, source, pool)
    assert model.score(test, test.labels) > 0.7 and model.out_of_fold_ is None
    with pytest.raises(Refusal, match="unlabelled"):
        METHODS[name]().fit(None, source, None)
    with pytest.raises(Refusal, match="rows of it|row of it|at least 2"):
        METHODS[name]().fit(None, source, pool.take([0]))


@pytest.mark.slow
@every
def test_constant_and_copied_features_and_large_units(name):
    domains = [world(each(n), seed, 0.5 * (seed != 2)) for n, seed in ((4, 1), (20, 2), (12, 3), (10, 4))]
    plain = (
        METHODS[name]().fit(domains[0], domains[1], hidden(domains[2])).score(domains[3], domains[3].labels)
    )

    def changed(domain: Domain, change) -> Domain:
        return replace(domain, items=ArrayItems(change(domain.items.array)))

    def constant(rows):
        return np.column_stack([rows, np.full(len(rows), 1e6 + 0.1), rows[:, 0]])

    for change in (constant, lambda rows: rows * [1e6, 1e-6, 1, 1e3, 1]):
        target, source, pool, test = (changed(domain, change) for domain in domains)
        model = METHODS[name]().fit(target, source, hidden(pool))
        assert np.isfinite(model.predict_proba(test)).all()
        assert model.score(test, test.labels) > plain - 0.25
    # A feature that is constant in the target alone carries no news there.
    target, pool, test = (
        changed(d, lambda rows: np.column_stack([rows[:, :4], np.full(len(rows), 3.0)]))
        for d in domains[::2] + domains[3:]
    )
    told = METHODS[name]().fit(target, domains[1], hidden(pool)).predict_proba(test)
    assert np.isfinite(told).all()


@pytest.mark.slow
@every
def test_labels_of_unlabelled_and_source_units_are_not_read(name):
    target, source, pool = world(each(3), 1, 0.5), world(each(15), 2), world(each(10), 3, 0.5)
    test = world(each(5), 4, 0.5)
    model = METHODS[name]().fit(target, source, pool)
    lied_to = METHODS[name]().fit(target, source, replace(pool, labels=(pool.labels + 1) % 3))
    np.testing.assert_array_equal(model.predict_proba(test), lied_to.predict_proba(test))


# -- agreement with skada and POT


def rows_of_two(seed: int = 0, width: int = 5):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width))
    source, target = rng.normal(size=(60, width)), rng.normal(size=(40, width)) @ mixing + 1.5
    rows, sides = np.concatenate([source, target]), np.repeat([1, -2], [60, 40])
    return source, target, rows, sides


def test_coral_agrees_with_skada():
    from skada import CORALAdapter

    source, target, rows, sides = rows_of_two()
    theirs = CORALAdapter(reg="auto").fit_transform(rows, sample_domain=sides)[:60]
    mine = CORAL(shrinkage="ledoit-wolf")._align(source, np.zeros(60, dtype=int), target)
    np.testing.assert_allclose(mine - target.mean(0), theirs, atol=1e-6)


def test_subspace_alignment_agrees_with_skada():
    from skada import SubspaceAlignmentAdapter

    source, target, rows, sides = rows_of_two()
    theirs = SubspaceAlignmentAdapter(n_components=3, random_state=0).fit_transform(rows, sample_domain=sides)
    mine = SubspaceAlignment(dimensions=3)
    aligned = np.concatenate([mine._align(source, np.zeros(60, dtype=int), target), mine._mapped(target)])
    np.testing.assert_allclose(aligned @ aligned.T, theirs @ theirs.T, atol=1e-8)


def test_transfer_components_agree_with_skada_where_its_problem_is_symmetric_and_leave_less_shift_elsewhere():
    from scipy.linalg import subspace_angles
    from skada import TransferComponentAnalysisAdapter

    _, _, rows, sides = rows_of_two()
    gap = np.repeat([1 / 60, -1 / 40], [60, 40])
    for theirs_mu, same in ((1e-6, True), (10.0, False)):
        theirs = TransferComponentAnalysisAdapter(n_components=3, mu=theirs_mu).fit(rows, sample_domain=sides)
        mine = transfer_components(theirs.K_, 60, 3, 1 / theirs_mu)  # skada weighs the other term
        if same:
            assert subspace_angles(mine, theirs.eigvects_).max() < 1e-4
        left = [np.linalg.norm(gap @ (z := theirs.K_ @ w)) / z.std() for w in (mine, theirs.eigvects_)]
        assert left[0] < left[1] + 1e-3 and (same or left[0] < 0.3 * left[1])


def test_transport_agrees_with_skada():
    from skada import ClassRegularizerOTMappingAdapter, EntropicOTMappingAdapter, OTMappingAdapter

    source, target, rows, sides = rows_of_two()
    labels = np.arange(60) % 2
    costs = ((source[:, None] - target) ** 2).sum(-1)
    middle = float(np.median(costs))
    masked = np.concatenate([labels, np.full(40, -1)])
    pairs = (
        (OTMappingAdapter(), {"entropy": 0.0}, 1e-6),
        (EntropicOTMappingAdapter(reg_e=0.1 * middle), {"entropy": 0.1}, 1e-2),
        (
            ClassRegularizerOTMappingAdapter(reg_e=0.1 * middle, reg_cl=0.0),
            {"entropy": 0.1, "class_separation": 1e-12, "labels": labels},
            1e-2,
        ),
    )
    for adapter, given, tolerance in pairs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = adapter.fit_transform(rows, masked, sample_domain=sides)[:60]
        plan = transport_plan(source, target, **given)
        np.testing.assert_allclose(plan / plan.sum(1, keepdims=True) @ target, theirs, atol=tolerance)


def test_transport_refuses_what_cannot_be_and_moves_rows_outside_the_plan():
    with pytest.raises(Refusal, match="entropy"):
        transport_plan(
            np.zeros((3, 1)), np.ones((3, 1)), np.zeros(3, dtype=int), entropy=0, class_separation=1
        )
    source, target = world(each(60), 1), world(each(30), 2, 2.0)
    model = OptimalTransport(most_rows=40).fit(None, source, hidden(target))
    assert "40 of 180" in model.notes_[0] and model.score(target, target.labels) > 0.8


# -- covariances


def test_covariance_of_few_rows_stays_at_the_known_one_and_of_many_leaves_it():
    rng = np.random.default_rng(0)
    known, other = np.eye(20), np.diag(np.linspace(0.2, 3, 20))
    assert shrunk_towards(rng.normal(size=(6, 20)), known)[1] > 0.8
    found, share = shrunk_towards(rng.normal(size=(3000, 20)) * np.sqrt(np.diag(other)), known)
    assert share < 0.1 and np.abs(found - other).max() < 0.3


# -- augmented and shrunk heads


def test_augmented_is_the_joint_problem_with_three_penalties():
    rows, of_target = np.arange(6.0).reshape(3, 2), np.array([False, True, False])
    np.testing.assert_array_equal(augment(rows, of_target)[1], [2, 3, 0, 0, 2, 3])
    np.testing.assert_array_equal(augment(rows, of_target)[2], [4, 5, 4, 5, 0, 0])


def test_shrunk_head_has_both_ends():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(30, 6)), np.arange(30) % 3
    prior = solve_head(rng.normal(size=(50, 6)), np.arange(50) % 3, 3, 1.0)
    assert solve_towards(rows, labels, prior, 0.0) is prior
    close, far = (solve_towards(rows, labels, prior, c) for c in (1e-6, 1e4))
    np.testing.assert_allclose(close.weight, prior.weight, atol=1e-4)
    nothing = SolvedHead(np.zeros((3, 6)), np.zeros(3))
    own = solve_towards(rows, labels, nothing, 1e4)
    np.testing.assert_allclose(far.predict_proba(rows), own.predict_proba(rows), atol=0.02)


def test_shrunk_head_solves_its_problem():
    rng = np.random.default_rng(1)
    rows, labels = rng.normal(size=(12, 30)), np.arange(12) % 2
    prior = SolvedHead(rng.normal(size=(2, 30)), rng.normal(size=2))
    head = solve_towards(rows, labels, prior, 0.3)
    # At the minimum the change is minus C times the slope of the loss.
    slope = (head.predict_proba(rows) - np.eye(2)[labels]).T @ rows
    np.testing.assert_allclose(head.weight - prior.weight, -0.3 * slope, atol=1e-6)


def test_opposite_source_is_left_alone_and_same_source_is_used():
    source = world(each(60), 1)
    opposite = replace(source, labels=(source.labels + 1) % 3)
    target, test = world(each(8), 2), world(each(100), 3)
    alone = TargetOnly().fit(target).score(test, test.labels)
    model = ShrunkToSource().fit(target, opposite)
    assert model.score(test, test.labels) > alone - 0.1
    assert Pooled().fit(target, opposite).score(test, test.labels) < model.score(test, test.labels) - 0.1
    assert ShrunkToSource().fit(target, source).score(test, test.labels) > alone - 0.03


def test_class_that_the_source_lacks_is_learned_from_the_target():
    source, target, test = world(np.repeat([0, 1], 30), 1), world(each(8), 2), world(each(50), 3)
    for method in (ShrunkToSource(), Augmented(), CORAL()):
        model = method.fit(target, source)
        assert (model.predict(test)[test.labels == 2] == 2).mean() > 0.6, method
    assert any("nothing about c" in note for note in ShrunkToSource().fit(target, source).notes_)


# -- source free


def test_recentring_with_many_rows_undoes_units_and_with_few_hardly_moves():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 4)) + 2
    known, head = FeatureStatistics.of(rows), SolvedHead(rng.normal(size=(2, 4)), np.array([0.5, -0.5]))
    moved = recentred(head, known, rows * 10 - 3, prior_rows=0)
    np.testing.assert_allclose(moved.predict_proba(rows * 10 - 3), head.predict_proba(rows), atol=1e-9)
    few = recentred(head, known, rows[:2] + 1, prior_rows=10_000)
    np.testing.assert_allclose(few.weight, head.weight, rtol=0.01)


def test_adapted_model_needs_what_it_says():
    source, pool = world(each(20), 1), hidden(world(each(20), 2, 1.0))
    model = SourceOnly().fit(None, source, pool)
    before = model.predict_proba(pool)
    with pytest.raises(Refusal, match="statistics="):
        adapted(model, pool, "statistics")
    with pytest.raises(Refusal, match='Did you mean "statistics"'):
        adapted(model, pool, "statistic")
    with pytest.raises(Refusal, match="unlabelled"):
        adapted(model, pool.take([]))
    with pytest.raises(Refusal, match="not on the rows themselves"):
        adapted(CORAL().fit(None, source, pool), pool)
    moved = adapted(model, pool)
    np.testing.assert_array_equal(
        model.predict_proba(pool), before
    )  # the model that was given is left as it is
    assert moved.predict_proba(pool).shape == before.shape
    with pytest.raises(Refusal, match="unlabelled"):
        SourceFree().fit(world(each(3), 3), source)


def test_information_maximisation_makes_sure_and_even():
    rows = world(each(30), 5, 0.3).items.array
    head = solve_head(world(each(30), 6).items.array, each(30), 3, 1e-2)
    before, after = (h.predict_proba(rows) for h in (head, information_maximised(head, rows)))
    assert selection.prediction_entropy(after) < selection.prediction_entropy(before)
    assert np.abs(after.mean(0) - 1 / 3).max() < 0.1


# -- selection


def test_scores_agree_with_skada():
    from skada import CORALAdapter, make_da_pipeline
    from skada.metrics import DeepEmbeddedValidation, PredictionEntropyScorer, SoftNeighborhoodDensity
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state

    source, target, rows, sides = rows_of_two()
    labels = (source.sum(1) > 0).astype(int)
    masked = np.concatenate([labels, np.full(40, -1)])
    pipe = make_da_pipeline(CORALAdapter(), LogisticRegression()).fit(rows, masked, sample_domain=sides)
    told = pipe.predict_proba(target, sample_domain=np.full(40, -2))
    entropy = -PredictionEntropyScorer()(pipe, rows, masked, sample_domain=sides)
    assert selection.prediction_entropy(told) == pytest.approx(
        2 * entropy
    )  # skada divides by the classes too
    density = SoftNeighborhoodDensity()(pipe, rows, masked, sample_domain=sides)
    assert selection.soft_neighbourhood_density(told) == pytest.approx(density, abs=1e-6)

    # skada's own loss is (n,) and meets weights of (n, 1), which gives a table of all pairs; a loss of (n, 1) does not.
    def loss(codes, told):
        return -np.log(told[np.arange(len(codes)), codes])[:, None]

    scorer = DeepEmbeddedValidation(loss_func=loss, random_state=0)
    theirs = -scorer(pipe, rows, masked, sample_domain=sides)
    # The same held-out rows and weights as skada's, through the formula here.
    train, valid, _, codes = train_test_split(
        source, labels, test_size=0.33, random_state=check_random_state(0)
    )
    step = pipe[:-1].transform
    seen, asked, there = step(train), step(valid), step(target)
    of_domain = LogisticRegression().fit(np.concatenate([seen, there]), np.repeat([1, 0], [len(seen), 40]))
    shares = of_domain.predict_proba(asked)
    weights = len(seen) / 40 * shares[:, 0] / shares[:, 1]
    said = pipe.predict_proba(valid, sample_domain=np.ones(len(valid)), allow_source=True)
    losses = -np.log(said[np.arange(len(codes)), codes])
    assert selection.dev_risk(losses, weights) == pytest.approx(theirs, rel=1e-6)


def test_choice_says_why_and_refuses_what_it_does_not_know():
    source, pool = world(each(30), 1), hidden(world(each(30), 2, 0.3))
    candidates = {"source only": SourceOnly(), "CORAL": CORAL()}
    choice = selection.choose_unsupervised(candidates, source, pool)
    assert choice.chosen in candidates and set(choice.scores) == set(selection.CRITERIA)
    assert choice.chosen in str(choice)
    far = selection.choose_unsupervised(
        candidates, source, hidden(world(each(30), 2, 30.0)), "importance weighted"
    )
    assert any("hardly overlap" in note for note in far.notes)
    with pytest.raises(Refusal, match='Did you mean "entropy"'):
        selection.choose_unsupervised(candidates, source, pool, "entrop")


# -- size of the shift


@pytest.mark.parametrize(("first", "second", "width"), [(10, 10, 3), (15, 60, 30)])
def test_false_alarms_are_as_rare_as_promised(first, second, width):
    rng = np.random.default_rng(0)
    alarms = [
        shift_size(
            rng.normal(size=(first, width)), rng.normal(size=(second, width)), dealings=59, seed=i
        ).p_value
        <= 0.05
        for i in range(120)
    ]
    assert np.mean(alarms) <= 0.1


def test_clear_shifts_are_found_and_sized():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 5))
    for other in (rng.normal(size=(60, 5)) + 0.8, rng.normal(size=(60, 5)) * 3):
        found = shift_size(rows, other, dealings=99)
        assert found.p_value <= 0.05 and "more than luck" in str(found)
    sizes = [proxy_a_distance(rows, rng.normal(size=(60, 5)) + move) for move in (0, 0.5, 3)]
    assert sizes[0] < sizes[1] < sizes[2] and sizes[0] < 0.6 and sizes[2] > 1.9


def test_shift_of_films_is_judged_by_patients():
    rng, alarms = np.random.default_rng(0), []
    patients = np.repeat(np.arange(16), 6)
    for seed in range(40):
        films = rng.normal(size=(16, 3))[patients] + 0.3 * rng.normal(size=(96, 3))
        groups = patients[:48], patients[48:]
        alarms.append(shift_size(films[:48], films[48:], groups, dealings=59, seed=seed).p_value <= 0.05)
    assert np.mean(alarms) <= 0.15


def test_shift_of_degenerate_sets():
    flat = np.zeros((8, 3))
    assert shift_size(flat, flat).p_value == 1 and shift_size(flat, flat).a_distance == 0
    assert shift_size(flat, flat + 1).p_value <= 0.05
    for given, said in (
        ((flat[:3], flat), "at least 4"),
        ((flat, np.zeros((8, 2))), "cannot be compared"),
        ((flat, np.full((8, 3), np.nan)), "finite"),
    ):
        with pytest.raises(Refusal, match=said):
            shift_size(*given)
    with pytest.raises(Refusal, match="groups on each side"):
        shift_size(flat, flat, groups=(np.repeat([0, 1], 4), np.repeat([2, 3], 4)))


# -- real data


@pytest.mark.slow
def test_digits_of_another_kind(data_dir):
    from PIL import Image

    found = np.load(data_dir / "shift_digits_mnist_usps" / "digits.npz")

    def side(name: str, chosen: slice) -> Domain:
        images = found[f"{name}_x"][chosen]
        images = images[:, 4:24, 4:24] if name == "mnist" else images
        small = [
            np.asarray(Image.fromarray(i.astype(np.uint8)).resize((8, 8), Image.Resampling.BOX)) / 255
            for i in images
        ]
        return read_arrays(np.stack(small), [str(label) for label in found[f"{name}_y"][chosen]], name=name)

    source, usps = side("mnist", slice(0, 500)), side("usps", slice(0, 1000))
    pool, test = usps.take(np.arange(400)), usps.take(np.arange(400, 1000))
    few = pool.take(few_shot_draw(pool.labels, 3, 0).train)

    def score(method, target):
        return balanced_accuracy_score(test.labels, method.fit(target, source, hidden(pool)).predict(test))

    plain, alone = score(SourceOnly(), None), score(TargetOnly(), few)
    without = {
        name: score(METHODS[name](), None)
        for name in ("CORAL", "optimal transport", "information maximisation")
    }
    with_few = {
        name: score(METHODS[name](), few)
        for name in ("CORAL", "optimal transport", "augmented", "shrunk to source")
    }
    assert max(without.values()) > plain + 0.03, (plain, without)
    assert all(found > alone for found in with_few.values()), (alone, with_few)
    model = CORAL().fit(few, source, hidden(pool))
    assert model.shift_after_ < model.shift_before_
    shares = [CORAL(target_share=share) for share in (None, 0.5)]
    assert score(shares[1], few) > score(shares[0], few)
