"""Deep alignment: every term does what its formula says, and the estimator keeps the contract."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from deep_digits import Digits, measured
from scipy import stats
from sklearn.base import clone

from tljupyter.backbones.registry import random_backbone
from tljupyter.backbones.small import GREY_64
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.augmentations import Augmentations
from tljupyter.domains.domain import Domain
from tljupyter.domains.readers import read_arrays
from tljupyter.freezing import FreezePlan
from tljupyter.measures.intervals import interval_of_gain
from tljupyter.refusals import Refusal
from tljupyter.training import Orders, TrainingSpec
from tljupyter.transfer.alignment.deep import (
    ALIGNMENTS,
    DeepAligned,
    JoinedInputs,
    Sides,
    TargetImages,
    certainty_weights,
    class_confusion,
    coral_distance,
    endless_batches,
    kernel_mean_distance,
    reverse_gradient,
    schedule,
    telling_apart,
)
from tljupyter.transfer.inputs import DomainInputs

CLASSES = ("ill", "mild", "well")
TERMS = [name for name in ALIGNMENTS if name not in ("none", "adabn")]
BATCH_NORM, GROUP_NORM = "digits_convnet", "small_groupnorm"


@cache
def backbone(name=BATCH_NORM):
    if name == BATCH_NORM:
        return load_backbone(name, weights="random", seed=0)
    return random_backbone(name, GREY_64.at(16), 0)


def world(count: int, seed: int, shift: float = 0.0, classes=(0, 1, 2)) -> Domain:
    "A bright bar at one of three heights; `shift` raises the ground."
    rng, labels = np.random.default_rng(seed), np.resize(classes, count)
    images = rng.uniform(0, 0.4, size=(count, 8, 8)).astype(np.float32) + np.float32(shift)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 3] += 0.4
    domain = read_arrays(np.clip(images, 0, 1), [CLASSES[label] for label in labels], name=f"world {seed}")
    codes = np.array([CLASSES.index(name) for name in domain.classes])
    return replace(domain, labels=codes[domain.labels], classes=CLASSES)


def hidden(domain: Domain) -> Domain:
    return replace(domain, labels=np.full(len(domain), -1))


def aligned(alignment="dann", net=BATCH_NORM, epochs=3, **given):
    spec = TrainingSpec(epochs=epochs, batch_size=16, learning_rate=3e-3)
    return DeepAligned(
        backbone(net), alignment, **{"plan": FreezePlan.all(backbone(net)), "spec": spec} | given
    )


def weights_of(model: DeepAligned) -> list[np.ndarray]:
    return [value.numpy() for value in model.network_.backbone.state_dict().values()]


# The formulas


def rows(count, shift=0.0, scale=1.0, seed=0, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * scale + shift


def test_coral_and_confusion_agree_with_skada():
    # deepcoral_loss and mcc_loss of skada 0.6.0 (skada.deep.losses) on the same rows.
    rng = np.random.default_rng(0)
    source = torch.tensor(rng.normal(size=(12, 5))).float()
    target = torch.tensor(rng.normal(size=(9, 5)) * 1.5 + 0.5).float()
    assert float(coral_distance(source, target)) == pytest.approx(0.28874823, rel=1e-5)
    assert float(class_confusion(target, 1.0)) == pytest.approx(0.58198893, rel=1e-5)
    assert float(class_confusion(target, 2.5)) == pytest.approx(0.75316280, rel=1e-5)


def test_kernel_means_agree_with_the_definition():
    source, target = rows(7, seed=1), rows(6, 1.0, seed=2)
    both = np.concatenate([source.numpy(), target.numpy()]).astype(float)
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    kernel = np.mean([np.exp(-squared / (w * squared.mean())) for w in (0.25, 0.5, 1, 2, 4)], axis=0)
    sign = np.repeat([1 / 7, -1 / 6], [7, 6])
    assert float(kernel_mean_distance(source, target)) == pytest.approx(sign @ kernel @ sign, rel=1e-4)


@pytest.mark.parametrize("distance", [coral_distance, kernel_mean_distance])
def test_distances_are_zero_for_equal_domains_and_their_gradient_brings_domains_closer(distance):
    source, target = rows(40), rows(40, 0.7, 2.0, seed=1).requires_grad_()
    assert abs(float(distance(source, source))) < 1e-6
    before = distance(source, target)
    (gradient,) = torch.autograd.grad(before, target)
    after = distance(source, target - 0.1 * gradient / gradient.norm() * target.norm())
    assert 0 <= after < before


@pytest.mark.parametrize("distance", [coral_distance, kernel_mean_distance])
def test_distances_of_rows_that_are_one_point_are_numbers(distance):
    point = torch.ones(4, 5, requires_grad=True)
    found = distance(point, point.detach().clone())
    found.backward()
    assert float(found.detach()) == 0 and torch.isfinite(point.grad).all()


def test_confusion_is_least_for_certain_predictions_and_most_for_wavering_ones():
    certain = 80 * torch.eye(4).repeat(3, 1)
    assert float(class_confusion(certain)) < 1e-6
    assert float(class_confusion(0 * certain)) == pytest.approx(0.75)
    logits = rows(30, width=4).requires_grad_()
    before = class_confusion(logits)
    (gradient,) = torch.autograd.grad(before, logits)
    assert class_confusion(logits - 5 * gradient) < before
    assert float(certainty_weights(logits.detach().softmax(1)).mean()) == pytest.approx(1)


def test_reversal_hands_rows_on_and_turns_the_gradient_round():
    given = torch.tensor([1.0, -2.0], requires_grad=True)
    out = reverse_gradient(given, 0.5)
    out.pow(2).sum().backward()
    torch.testing.assert_close(out, given)
    torch.testing.assert_close(given.grad, torch.tensor([-1.0, 2.0]))
    grown = [schedule(share) for share in (0, 0.1, 0.5, 1)]
    assert grown == sorted(grown) and grown[0] == 0 and grown[-1] > 0.999


def begun(name: str, features: int = 5, classes: int = 3, **given):
    "A term as it is before the first step, for rows of numbers."
    from torch import nn

    from tljupyter.training import Network

    images = JoinedInputs([DomainInputs(backbone(), world(6, 0).items)])
    term = ALIGNMENTS[name](TargetImages(images, np.full(6, -1)), **given)
    term.begin(Network(backbone(), nn.Linear(features, classes), CLASSES[:classes]), TrainingSpec())
    return term


def sides(source, target, trust=1.0, classes=3):
    logits = [part[:, :classes].detach() for part in (source, target)]
    return Sides(source, logits[0], target, logits[1], trust)


@pytest.mark.parametrize("name", ["dann", "cdan"])
def test_an_opponent_learns_to_tell_domains_apart_and_the_features_learn_to_hide(name):
    term = begun(name)
    source, target = rows(60), rows(60, 1.5, seed=1)
    losses = []
    for _ in range(60):
        loss = term.distance(sides(source, target))
        loss.backward()
        term.after(None)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0] and losses[0] == pytest.approx(np.log(2), abs=0.1)
    moved = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term.distance(sides(source, moved)), moved)
    # A step downhill on the reversed gradient makes the trained opponent worse.
    nearer = target - 0.5 * gradient / gradient.norm() * target.norm()
    assert term.distance(sides(source, nearer)) > losses[-1]
    # On equal domains no opponent is better than chance.
    assert telling_apart(torch.zeros(5, 1), torch.zeros(4, 1)) == pytest.approx(np.log(2))
    assert term.distance(sides(source, source)) >= np.log(2) - 1e-6


def test_the_reversed_gradient_begins_at_zero():
    term, source = begun("dann"), rows(20)
    target = rows(20, 1.0, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(term.distance(sides(source, target, trust=0.0)), target)
    assert not gradient.any()


def test_many_products_are_sketched():
    term = begun("cdan", features=900, classes=5)
    assert term.opponent[0].in_features == term.sketch
    x, p = torch.randn(2, 900), torch.randn(2, 5).softmax(1)
    full = ((x[:, :, None] * p[:, None]).flatten(1)).norm(dim=1)
    torch.testing.assert_close(term._products(x, p).norm(dim=1), full, rtol=0.3, atol=0)


def test_streams_show_every_image_once_before_any_again_and_small_sets_in_whole():
    stream = endless_batches(7, 3, np.random.default_rng(0))
    assert (np.bincount(np.concatenate([next(stream) for _ in range(7)])) == 3).all()
    assert sorted(next(endless_batches(2, 16, np.random.default_rng(0)))) == [0, 1]


# The estimator


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_learns_repeats_by_seed_and_clones(name):
    source, pool, test = world(48, 1), hidden(world(32, 2, 0.2)), world(30, 3, 0.2)
    first = aligned(name, epochs=6).fit(None, source, pool)
    given = first.predict_proba(test)
    assert given.shape == (30, 3) and np.allclose(given.sum(1), 1, atol=1e-4) and first.notes_ == ()
    again = clone(first).fit(None, source, pool)
    np.testing.assert_array_equal(given, again.predict_proba(test))
    if name != "none":
        assert (given.argmax(1) == test.labels).mean() > 0.6
    assert clone(first).get_params().keys() == first.get_params().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("net", [BATCH_NORM, GROUP_NORM])
def test_a_term_of_no_strength_is_its_control(name, net):
    "Source batches, steps and chance are those of the control; only normalisation statistics come from the target."
    source, pool = world(40, 1), hidden(world(24, 2, 0.2))
    control = aligned("adabn" if net == BATCH_NORM else "none", net).fit(None, source, pool)
    without = aligned(name, net, strength=0.0).fit(None, source, pool)
    with_term = aligned(name, net).fit(None, source, pool)
    for mine, its in zip(*map(weights_of, (without, control)), strict=True):
        np.testing.assert_allclose(mine, its, atol=2e-5)
    assert any(
        not np.allclose(a, b, atol=1e-3) for a, b in zip(*map(weights_of, (control, with_term)), strict=True)
    )


def test_statistics_are_the_targets_and_only_where_they_move():
    source, pool = world(40, 1), hidden(world(24, 2, 0.3))

    def means(name, plan):
        model = aligned(name, plan=plan).fit(None, source, pool)
        state = model.network_.backbone.state_dict()
        return state[next(key for key in state if key.endswith("running_mean"))], model

    whole = FreezePlan.all(backbone())
    of_source, of_target = means("none", whole)[0], means("adabn", whole)[0]
    assert not torch.allclose(of_source, of_target, atol=1e-2)
    # The first convolution's mean over the target's images, computed by hand.
    model = means("adabn", whole)[1]
    first = next(m for m in model.network_.backbone.module.modules() if isinstance(m, torch.nn.Conv2d))
    images = torch.as_tensor(DomainInputs(backbone(), pool.items).at(0)[:, 0].copy())
    with torch.no_grad():
        by_hand = first(images).mean((0, 2, 3))
    torch.testing.assert_close(of_target, by_hand, atol=2e-2, rtol=0)
    frozen = FreezePlan.all(backbone(), "frozen")
    assert "same as none" in means("adabn", frozen)[1].notes_[0]
    torch.testing.assert_close(means("none", frozen)[0], means("dann", frozen)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "dann", "mcc"])
def test_labelled_target_images_do_not_drown(name):
    "Six labels against a hundred that contradict them."
    source, target = world(100, 1), world(6, 2)
    turned = replace(target, labels=(target.labels + 1) % 3)

    def learned(share):
        model = aligned(name, epochs=6, target_share=share).fit(turned, source, hidden(target))
        return (model.predict(turned) == turned.labels).mean()

    assert learned(0.0) < 0.3 and learned(0.9) > 0.8


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("labels", [[0], [1, 1], [0, 0, 1], [0, 1, 2] * 3], ids=str)
def test_few_target_images_work(name, labels):
    target = world(len(labels), 2, 0.2, labels)
    model = aligned(name, epochs=1).fit(target, world(7, 1), hidden(world(3, 3, 0.2)))
    assert np.isfinite(model.predict_proba(world(6, 4, 0.2))).all()


def test_no_label_is_read_that_is_not_for_reading():
    source, pool, test = world(30, 1), world(20, 2, 0.2), world(20, 3, 0.2)
    given = aligned().fit(None, source, pool).predict_proba(test)
    lied_to = aligned().fit(None, source, hidden(pool)).predict_proba(hidden(test))
    np.testing.assert_array_equal(given, lied_to)
    unread = aligned(target_share=0.0).fit(pool, source, pool)
    turned = aligned(target_share=0.0).fit(replace(pool, labels=pool.labels[::-1].copy()), source, pool)
    for mine, its in zip(weights_of(unread), weights_of(turned), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_classes_are_matched_by_name():
    source, target, test = world(60, 1), world(12, 2), world(30, 3)
    order = ("well", "ill", "mild")
    labels = np.array([order.index(CLASSES[code]) for code in target.labels])
    renamed = replace(target, classes=order, labels=labels)
    plain = aligned(epochs=4).fit(target, source, hidden(target)).predict(test)
    found = aligned(epochs=4).fit(renamed, source, hidden(renamed)).predict(test)
    assert (np.array(order)[found] == np.array(CLASSES)[plain]).mean() > 0.8
    with pytest.raises(Refusal, match="same"):
        aligned().fit(target, replace(source, classes=("a", "b", "c")), hidden(target))


def test_the_shift_is_measured_before_and_after():
    source, pool = world(48, 1), hidden(world(32, 2, 0.3))
    model = aligned(epochs=1).fit(None, source, pool)
    assert 0 <= model.shift_after_ <= 2 and 1 < model.shift_before_ <= 2
    assert aligned(epochs=1).fit(None, source, hidden(world(3, 3))).shift_after_ is None
    same = aligned(epochs=1).fit(None, source, hidden(world(48, 3)))
    assert same.shift_before_ < model.shift_before_


def test_source_equal_to_target_is_told():
    source = world(24, 1)
    model = aligned(epochs=1).fit(None, source, hidden(source))
    assert "same items" in model.notes_[0]
    assert (model.predict_proba(source) >= 0).all()


def test_frozen_stages_are_read_once_and_stay():
    plan = FreezePlan.last(backbone(), stages=1)
    model = aligned(plan=plan, augmentations=Augmentations(("translate",)), views=2).fit(
        world(5, 4, 0.2), world(30, 1), hidden(world(20, 2, 0.2))
    )
    assert model.boundary_ > 0
    name = backbone().stage_names[0]
    for mine, its in zip(
        model.network_.backbone.parameters_of(name), backbone().parameters_of(name), strict=True
    ):
        torch.testing.assert_close(mine, its)
    gradual = FreezePlan.gradual(backbone(), every=1)
    thawing = aligned(plan=gradual, epochs=4).fit(None, world(30, 1), hidden(world(20, 2, 0.2)))
    assert thawing.boundary_ < len(backbone().stages)


def test_a_training_that_is_stopped_predicts():
    class Stop:
        steps = 0

        def tell(self, event):
            self.steps = event.step

        def ask(self):
            return Orders(stop=self.steps > 2)

    model = aligned("mcc", observer=Stop()).fit(None, world(60, 1), hidden(world(20, 2)))
    assert np.isfinite(model.predict_proba(world(5, 3))).all()


@pytest.mark.parametrize(
    ("given", "without", "says"),
    [
        ({"alignment": "dan n"}, (), "dann"),
        ({"strength": -1.0}, (), "strength"),
        ({"strength": float("nan")}, (), "strength"),
        ({"target_share": 1.0}, (), "target_share"),
        ({}, ("source",), "source"),
        ({}, ("unlabelled",), "unlabelled"),
    ],
)
def test_what_is_refused(given, without, says):
    domains = {"target": None, "source": world(12, 1), "unlabelled": hidden(world(12, 2))}
    with pytest.raises(Refusal, match=says):
        aligned(**given).fit(**domains | dict.fromkeys(without))


def test_unlabelled_source_and_one_unlabelled_image_are_refused():
    with pytest.raises(Refusal, match="labels"):
        aligned().fit(None, hidden(world(12, 1)), hidden(world(12, 2)))
    with pytest.raises(Refusal, match="two or more"):
        aligned().fit(None, world(12, 1), hidden(world(1, 2)))


# Real digits


@pytest.mark.slow
def test_dann_and_mcc_beat_the_source_alone_on_real_digits(data_dir):
    digits, seeds = Digits.read(data_dir / "shift_digits_mnist_usps"), range(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: measured(digits, name, seeds, images=1500) for name in ("none", "dann", "mcc")}
    finally:
        torch.set_num_threads(threads)
    for name in ("dann", "mcc"):
        gain = interval_of_gain(found[name].scores, found["none"].scores)
        assert gain.low > 0, f"{name}: {gain}"
        assert np.mean(found[name].after) < np.mean(found["none"].after) - 0.2
    assert stats.trim_mean(found["none"].scores.values, 0) > 0.6
