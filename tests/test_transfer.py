"""The estimators on a toy domain: one contract for all of them."""

from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits

from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.augmentations import Augmentations
from tljupyter.domains.domain import Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.domains.readers import read_arrays
from tljupyter.features.cache import FeatureCache
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import Refusal
from tljupyter.training import TrainingSpec
from tljupyter.transfer.baselines import FromScratch, Majority, ScratchNetwork
from tljupyter.transfer.finetuning import FineTuned
from tljupyter.transfer.heads import solve_head
from tljupyter.transfer.inputs import Reading
from tljupyter.transfer.probe import LinearProbe, stage_features


@cache
def backbone():
    return load_backbone("digits_convnet", weights="random", seed=0)


@cache
def digits(*classes) -> Domain:
    data = load_digits()
    keep = np.isin(data.target, classes)
    return read_arrays(
        (data.images[keep] / 16).astype(np.float32), [str(t) for t in data.target[keep]], name="digits"
    )


def few(domain, labels_per_class=4, seed=0):
    return domain.take(few_shot_draw(domain.labels, labels_per_class, seed).train)


ESTIMATORS = {
    "majority": lambda: Majority(),
    "linear probe": lambda: LinearProbe(backbone()),
    "middle stage": lambda: LinearProbe(backbone(), stage=backbone().stage_names[0]),
    "fine-tuned": lambda: FineTuned(
        backbone(),
        FreezePlan.all(backbone()),
        TrainingSpec(epochs=3),
        augmentations=Augmentations(("translate",)),
    ),
    "from scratch": lambda: FromScratch(ScratchNetwork(backbone(), 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("classes", [(3, 8), (1, 4, 7)])
def test_contract(name, classes):
    domain = digits(*classes)
    target, test = few(domain), domain.take(np.arange(40))
    estimator = ESTIMATORS[name]()
    fitted = estimator.fit(target)
    assert fitted is estimator and list(estimator.classes_) == list(range(len(classes)))
    probabilities = estimator.predict_proba(test)
    assert probabilities.shape == (40, len(classes)) and np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    again = clone(estimator).fit(target).predict_proba(test)
    np.testing.assert_array_equal(probabilities, again)
    held_out = getattr(estimator, "out_of_fold_", None)
    assert held_out is None or held_out.shape == (len(target), len(classes))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_label_a_class_and_a_class_without_labels(name):
    domain = digits(1, 4, 7)
    one = few(domain, 1)
    assert ESTIMATORS[name]().fit(one).predict_proba(domain.take([0, 1])).shape == (2, 3)
    without = domain.take(np.flatnonzero(domain.labels != 2)[:9])
    probabilities = ESTIMATORS[name]().fit(without).predict_proba(domain.take([0, 1, 2]))
    assert probabilities.shape == (3, 3) and np.isfinite(probabilities).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_other_targets_are_refused_by_name(name):
    domain = digits(3, 8)
    values = Domain("ages", domain.items, np.linspace(0, 1, len(domain)), (), None, None, domain.names)
    with pytest.raises(Refusal, match=r"(?i)majority|probe|fine-tuning|scratch"):
        ESTIMATORS[name]().fit(values)


def test_a_probe_beats_chance_and_a_cache_changes_nothing(tmp_path):
    domain = digits(3, 8)
    reading = Reading(FeatureCache(tmp_path / "cache", 10**8))
    plain = LinearProbe(backbone()).fit(few(domain, 10))
    cached = LinearProbe(backbone(), reading=reading).fit(few(domain, 10))
    np.testing.assert_array_equal(plain.predict_proba(domain), cached.predict_proba(domain))
    assert plain.score(domain, domain.labels) > 0.75


def test_stage_features_refuse_an_unknown_stage_with_the_nearest():
    name = backbone().stage_names[0]
    with pytest.raises(Refusal, match=name):
        stage_features(backbone(), digits(3, 8).items, name + "x")


def test_a_constant_or_huge_feature_does_not_spoil_the_head():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    features = rng.normal(size=(20, 50)) + labels[:, None]
    spoiled = np.column_stack([features, np.full(20, 7.0), 1e6 * features[:, 0]])
    plain, found = (solve_head(x, labels, 2, 0.01).predict_proba(x)[:, 1] for x in (features, spoiled))
    assert np.isfinite(found).all() and np.corrcoef(plain, found)[0, 1] > 0.99
