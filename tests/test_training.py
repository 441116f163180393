"""The loop obeys the plan and the observer, and its numbers come from its seed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tljupyter.backbones.weights import load_backbone
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import Refusal
from tljupyter.training import (
    LossTerm,
    Network,
    Orders,
    Quiet,
    TrainingSpec,
    batches,
    class_weights,
    predict,
    rate_at,
    train,
)


class Pixels:
    "Inputs at boundary 0 or, through the frozen stages, at any other."

    def __init__(self, array, backbone=None, views=1):
        self.array, self.backbone, self.views, self.asked = array, backbone, views, []

    def __len__(self):
        return len(self.array)

    def batch(self, boundary, rows, views):
        self.asked.append(boundary)
        x = torch.as_tensor(self.array[rows])
        with torch.inference_mode():
            return (self.backbone.prefix(boundary)(x) if boundary else x).numpy()


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 13)  # 26 images: batches of 16 and 10
    pixels = (rng.normal(size=(26, 1, 8, 8)) + labels[:, None, None, None]).astype(np.float32)
    backbone = load_backbone("digits_convnet", weights="random", seed=0)
    torch.manual_seed(0)
    return Network(backbone, nn.Linear(backbone.features, 2), ("dark", "bright")), pixels, labels


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before, module):
    return all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_frozen_stages_keep_weights_and_statistics(toy):
    network, pixels, labels = toy
    stages = network.backbone.stages
    before = [values(stage.module) for stage in stages]
    plan = FreezePlan.last(network.backbone, stages=1)
    train(network, plan, Pixels(pixels, network.backbone), labels, TrainingSpec(epochs=2))
    for stage, old, rule in zip(stages, before, plan.stages, strict=True):
        trained = not rule.frozen and stage.parameters > 0
        assert same(old, stage.module) != trained, stage.name


def test_the_linear_probe_plan_asks_only_for_finished_features(toy):
    network, pixels, labels = toy
    inputs = Pixels(pixels, network.backbone)
    history = train(
        network, FreezePlan.linear_probe(network.backbone), inputs, labels, TrainingSpec(epochs=2)
    )
    last = len(network.backbone.stages)
    assert set(inputs.asked) == {last} == {int(row["boundary"]) for row in history}


def test_a_thaw_moves_the_boundary_down_and_the_numbers_go_on(toy):
    network, pixels, labels = toy
    first = next(s.name for s in network.backbone.stages if s.parameters)
    plan = FreezePlan.linear_probe(network.backbone)
    plan = replace(plan, stages=tuple(replace(s, thaw_at=2) if s.name == first else s for s in plan.stages))
    history = train(network, plan, Pixels(pixels, network.backbone), labels, TrainingSpec(epochs=4))
    boundaries = [row["boundary"] for row in history]
    assert boundaries[0] == boundaries[1] > boundaries[2] == boundaries[3]


class Conductor(Quiet):
    "Gives one order at a step, and keeps the events."

    def __init__(self, step, orders):
        self.step, self.orders, self.events = step, orders, []

    def tell(self, event):
        self.events.append(event)

    def ask(self):
        steps = sum(event.kind == "step" for event in self.events)
        if steps == self.step:
            self.step = -1
            return self.orders
        return Orders()


def test_orders_are_obeyed_at_the_next_step(toy):
    network, pixels, labels = toy
    inputs = Pixels(pixels, network.backbone)
    last = network.backbone.stage_names[-2]
    plan = FreezePlan.linear_probe(network.backbone)
    stop = Conductor(3, Orders(stop=True))
    train(network, plan, inputs, labels, TrainingSpec(epochs=5), stop)
    assert [e.kind for e in stop.events][-1] == "stopped" and stop.events[-1].step == 3
    more = Conductor(3, Orders(more_epochs=2))
    assert len(train(network, plan, inputs, labels, TrainingSpec(epochs=3), more)) == 5
    names = [s.name for s in network.backbone.stages if s.parameters]
    thaw = Conductor(2, Orders(thaw=(names[-1],)))
    train(network, plan, inputs, labels, TrainingSpec(epochs=2), thaw)
    assert "thawed" in [e.kind for e in thaw.events], last


class Score(LossTerm):
    "Calls a chosen epoch the best, and adds nothing to the loss."

    def __init__(self, best):
        self.best, self.states = best, []

    def loss(self, step):
        return step.logits.new_zeros(())

    def epoch(self, network, boundary):
        self.states.append([values(stage.module) for stage in network.backbone.stages])
        return {"valid_loss": 1.0, "valid_balanced_accuracy": float(len(self.states) - 1 == self.best)}


@pytest.mark.parametrize("best", [0, 2, 3])
def test_the_best_epoch_comes_back_whole_whatever_thawed_since(toy, best):
    network, pixels, labels = toy
    start = [values(stage.module) for stage in network.backbone.stages]
    score, inputs = Score(best), Pixels(pixels, network.backbone.copy())
    plan, spec = FreezePlan.gradual(network.backbone, every=1), TrainingSpec(epochs=4, keep="best")
    history = train(network, plan, inputs, labels, spec, terms=(score,))
    assert [row["epoch"] for row in history if row["best"]][-1] == best
    for stage, kept, first in zip(network.backbone.stages, score.states[best], start, strict=True):
        assert same(kept, stage.module), stage.name
        assert best > 0 or same(first, stage.module)  # in epoch 0 only the head trained


def test_without_validation_only_a_stopped_training_goes_back(toy):
    network, pixels, labels = toy
    inputs, plan = Pixels(pixels, network.backbone.copy()), FreezePlan.last(network.backbone)
    spec = TrainingSpec(epochs=4, keep="best")
    runs = {}
    for keep in ("last", "best"):
        one = Network(network.backbone.copy(), copy.deepcopy(network.head), network.classes)
        train(one, plan, inputs, labels, replace(spec, keep=keep))
        runs[keep] = values(one.head)
    assert all(torch.equal(runs["last"][name], value) for name, value in runs["best"].items())
    stop = Conductor(5, Orders(stop=True))  # in the middle of the third epoch
    one = Network(network.backbone.copy(), copy.deepcopy(network.head), network.classes)
    history = train(one, plan, inputs, labels, spec, stop)
    best = int(min(history, key=lambda row: row["loss"])["epoch"])
    assert stop.events[-1].kind == "stopped" and stop.events[-1].values == {"best_epoch": best}


def test_a_pause_loses_no_order_and_the_last_word_is_not_missed(toy):
    network, pixels, labels = toy
    paused = [Orders(), Orders(pause=True, rate=0.5), Orders(pause=True, more_epochs=1), Orders()]
    asked = iter(
        [*paused, Orders(), Orders(), Orders(), Orders(), Orders(more_epochs=1)]
    )  # 6 steps, and the end

    class Paused(Conductor):
        def ask(self):
            return next(asked, Orders())

    watcher = Paused(-1, Orders())
    inputs, spec = Pixels(pixels, network.backbone), TrainingSpec(epochs=2)
    plan = FreezePlan.linear_probe(network.backbone)
    history = train(network, plan, inputs, labels, spec, watcher)
    assert len(history) == 4  # one epoch more while paused, one more after the last step
    rates = [event.values["learning_rate"] for event in watcher.events if event.kind == "step"]
    assert rates[0] == spec.learning_rate and rates[1] < 0.51 * spec.learning_rate


def test_every_label_is_used_and_no_batch_holds_one_image():
    for count in range(1, 70):
        found = batches(count, 16, np.random.default_rng(0))
        assert sorted(np.concatenate(found)) == list(range(count))
        assert count == 1 or min(len(b) for b in found) > 1


def test_seeded_whatever_the_global_state(toy):
    network, pixels, labels = toy
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        one = Network(network.backbone.copy(), nn.Linear(network.backbone.features, 2), network.classes)
        one.head.load_state_dict(network.head.state_dict())
        train(one, FreezePlan.all(one.backbone), Pixels(pixels), labels, TrainingSpec(epochs=3))
        results.append(predict(one, Pixels(pixels)))
    np.testing.assert_array_equal(*results)


def test_predictions_at_the_boundary_are_those_of_the_whole_network(toy):
    network, pixels, _ = toy
    whole = predict(network, Pixels(pixels))
    for boundary in range(len(network.backbone.stages) + 1):
        cut = predict(network, Pixels(pixels, network.backbone), boundary, batch_size=7)
        np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_refusals_name_the_fix(toy):
    network, pixels, labels = toy
    with pytest.raises(Refusal, match="26 images and 25 labels"):
        train(network, FreezePlan.all(network.backbone), Pixels(pixels), labels[:25], TrainingSpec())
    with pytest.raises(Refusal, match="learning_rate=1e\\+30"):
        train(
            network,
            FreezePlan.all(network.backbone),
            Pixels(pixels),
            labels,
            TrainingSpec(learning_rate=1e30),
        )
    with pytest.raises(Refusal, match="epochs"):
        TrainingSpec(epochs=0)


def test_rates_and_class_weights():
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[0] < rates[9] == 1.0 and rates[-1] < 0.01
    np.testing.assert_allclose(class_weights(np.array([0, 0, 0, 1]), 3).numpy(), [2 / 3, 2, 0])
