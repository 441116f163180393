"""One contract for every method of transfer that is listed: what each must survive, keep and never read."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone

from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.augmentations import Augmentations
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.readers import read_arrays
from tljupyter.refusals import Refusal
from tljupyter.training import TrainingSpec
from tljupyter.transfer.contract import FeatureClassifier
from tljupyter.transfer.instance.regression import FeatureRegressor
from tljupyter.transfer.methods import METHODS, Method
from tljupyter.transfer.penalties import Distillation
from tljupyter.transfer.probe import LinearProbe
from tljupyter.transfer.saving import load_method, save_method

CLASSES = ("ill", "mild", "well")


@cache
def backbone():
    return load_backbone("digits_convnet", weights="random", seed=0)


def world(method: Method, labels, seed: int, *, name: str, shift: float = 0.0, width: int = 6) -> Domain:
    "Three classes that are easily told apart; images for methods on a backbone, rows of numbers for the others."
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    if method.modality == "images":
        images = rng.uniform(0, 0.4, size=(len(labels), 8, 8)).astype(np.float32)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 3] += 0.5 + shift / 10
        domain = read_arrays(images, [CLASSES[label] for label in labels], name=name)
        codes = {kind: code for code, kind in enumerate(CLASSES)}
        labels = np.array([codes[domain.classes[code]] for code in domain.labels])
        return replace(domain, labels=labels, classes=CLASSES)
    rows = rng.normal(scale=0.7, size=(len(labels), width)) + shift
    rows[np.arange(len(labels)), labels] += 3
    names = np.array([f"{name} {i}" for i in range(len(labels))])
    classes = CLASSES
    if method.predicts == "numbers":
        labels, classes = labels.astype(float), ()
    return Domain(name, ArrayItems(rows), labels, classes, None, None, names, "table")


def each(count: int) -> np.ndarray:
    return np.repeat([0, 1, 2], count)


def estimator(method: Method, seed: int = 0, epochs: int = 4):
    given = {}
    if "backbone" in method.needs:
        given["backbone"], given["augmentations"] = backbone(), Augmentations(("translate",))
        given["spec"] = TrainingSpec(epochs=epochs, learning_rate=3e-3)
    if "teacher" in method.needs:
        given["terms"] = (Distillation(teacher()),)
    if "graph" in method.needs:
        given["graph"] = graph()
    if method.name != "majority":
        given["random_state"] = seed
    return method.make(**given)


@cache
def teacher():
    "A probe that has seen the target's classes."
    return LinearProbe(backbone()).fit(world(METHODS["distillation"], each(20), 7, name="seen before"))


@cache
def graph():
    from tljupyter.transfer.relational.graphs import ClassGraph

    return ClassGraph.from_edges([("ill", "sick"), ("mild", "sick"), ("sick", "any"), ("well", "any")])


def fitted(method: Method, target_labels, seed: int = 0, epochs: int = 4, **kwargs):
    target = world(method, target_labels, 1, name="target", shift=0.3, **kwargs)
    source = world(method, each(20), 2, name="source", **kwargs)
    pool = world(method, each(15), 3, name="pool", shift=0.3, **kwargs)
    return estimator(method, seed, epochs).fit(target, source, hidden(pool)), target, source, pool


def hidden(domain: Domain) -> Domain:
    return replace(domain, labels=np.full_like(domain.labels, -1))


def said(model, domain: Domain) -> np.ndarray:
    "Probabilities; of a method that predicts numbers, how near they are to the number of each class."
    if hasattr(model, "predict_proba"):
        return model.predict_proba(domain)
    near = np.exp(-np.abs(model.predict(domain)[:, None] - np.arange(3)))
    return near / near.sum(1, keepdims=True)


def checked(model, method: Method, **kwargs) -> np.ndarray:
    "What the model says of new items of the target domain; refused unless it is probabilities."
    test = world(method, each(10), 4, name="test", shift=0.3, **kwargs)
    given = said(model, hidden(test))
    assert given.shape == (30, 3) and np.isfinite(given).all()
    assert (given >= -1e-9).all() and np.allclose(given.sum(1), 1, atol=1e-4)
    return given


listed = pytest.mark.parametrize("name", METHODS)


@listed
def test_is_listed_with_what_it_needs(name):
    method = METHODS[name]
    assert method.name == name and method.needs
    assert method.paper or method.paradigm == "baseline", "a method names its source"
    model = estimator(method)
    given, copied = (
        {
            key: value
            for key, value in one.get_params().items()
            if isinstance(value, str | int | float | tuple)
        }
        for one in (model, clone(model))
    )
    assert repr(given) == repr(copied)


@pytest.mark.slow
@listed
def test_learns_a_small_shift_and_repeats_by_seed(name):
    method = METHODS[name]
    first, second = (fitted(method, each(5), seed=3, epochs=15)[0] for _ in range(2))
    given = checked(first, method)
    np.testing.assert_array_equal(given, checked(second, method))
    if name != "majority":
        assert (given.argmax(1) == each(10)).mean() > 0.6


@pytest.mark.slow
@listed
@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2], [0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1], [0, 0, 1], [1, 1]],
    ids=["one each", "one of a class", "a class missing", "below a batch", "one class only"],
)
def test_few_labels_work_or_are_refused(name, labels):
    method = METHODS[name]
    try:
        model = fitted(method, labels)[0]
    except Refusal as refusal:
        assert len(str(refusal)) > 30, "a refusal says what would be accepted"
        return
    checked(model, method)


@pytest.mark.slow
@listed
def test_more_features_than_rows(name):
    method = METHODS[name]
    if method.modality == "images":
        return  # images have more pixels than rows in every test here
    checked(fitted(method, each(3), width=60)[0], method, width=60)


@pytest.mark.slow
@listed
def test_constant_features_work_and_gaps_are_refused(name):
    method = METHODS[name]
    if method.modality == "images" or name == "majority":
        return
    target, source, pool = (
        world(method, each(n), seed, name="rows") for n, seed in ((4, 1), (15, 2), (12, 3))
    )
    for domain in (target, source, pool):
        domain.items.array[:, 4] = 7.0
    test = world(method, each(10), 4, name="test")
    test.items.array[:, 4] = 7.0
    given = said(estimator(method).fit(target, source, hidden(pool)), test)
    assert np.isfinite(given).all()
    for domain in (target, source):
        domain.items.array[2, 1] = np.nan
    with pytest.raises(Refusal, match="rows 2 has no number in column 1"):
        estimator(method).fit(target, source, hidden(pool))


@pytest.mark.slow
@listed
def test_reads_no_label_that_is_not_its_to_read(name):
    method = METHODS[name]
    model, target, source, pool = fitted(method, each(4))
    lied_to = estimator(method).fit(target, source, replace(pool, labels=(pool.labels + 1) % 3))
    np.testing.assert_array_equal(checked(model, method), checked(lied_to, method))
    test = world(method, each(10), 4, name="test", shift=0.3)
    np.testing.assert_array_equal(
        said(model, test), said(model, replace(test, labels=test.labels[::-1].copy()))
    )


@pytest.mark.slow
@listed
def test_is_saved_and_read_without_pickle(name, tmp_path):
    method = METHODS[name]
    model = fitted(method, each(4))[0]
    if not isinstance(model, FeatureClassifier | FeatureRegressor):
        return  # networks keep their weights in a run folder
    again = load_method(save_method(model, tmp_path / "method.skops"))
    np.testing.assert_allclose(checked(model, method), checked(again, method), rtol=1e-9)


def test_a_tree_that_was_bent_is_not_loaded(tmp_path):
    model = fitted(METHODS["TrAdaBoost.R2"], each(4))[0]
    tree = model.learners_[0].tree_
    state = tree.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"]["right_child"][0] = 10**6
    tree.__setstate__(state)
    with pytest.raises(Refusal, match="branches lead nowhere"):
        load_method(save_method(model, tmp_path / "bent.skops"))


@listed
def test_refuses_what_cannot_be_carried_over(name):
    method = METHODS[name]
    target, source = (world(method, each(4), seed, name="rows") for seed in (1, 2))
    if "target labels" in method.needs:
        for nothing in (None, target.take([])):
            with pytest.raises(Refusal):
                estimator(method).fit(nothing, source, hidden(target))
    if "source labels" in method.needs:
        with pytest.raises(Refusal, match="source"):
            estimator(method).fit(target, None, hidden(target))
        strangers = replace(source, classes=("a", "b", "c"))
        between_classes = method.paradigm == "relational" or name in ("co-tuning", "multi-task training")
        if method.predicts == "classes" and not between_classes:
            with pytest.raises(Refusal, match="same"):
                estimator(method).fit(target, strangers, hidden(target))
    if method.needs == ("target labels", "unlabelled"):
        with pytest.raises(Refusal, match="unlabelled"):
            estimator(method).fit(target, source, None)


@pytest.mark.slow
@listed
def test_source_equal_to_target_is_told(name):
    method = METHODS[name]
    target = world(method, each(8), 1, name="rows")
    model = estimator(method).fit(target, target, hidden(target))
    checked(model, method)
    if isinstance(model, FeatureClassifier | FeatureRegressor) and "source labels" in method.needs:
        assert any("same items" in note for note in model.notes_)
