"""Fine-tuning by what moves, how much of it, and what holds it back, on toy digits."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn

from tljupyter.backbones.registry import random_backbone
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.augmentations import Augmentations
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw, judging_folds
from tljupyter.domains.readers import read_arrays, read_images
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import Refusal
from tljupyter.training import Orders, Quiet, Step, TrainingSpec
from tljupyter.transfer.adapters import NORMALISATIONS, PARTS, LoRA, moving
from tljupyter.transfer.baselines import FromScratch, ScratchNetwork
from tljupyter.transfer.finetuning import TERMS, FineTuned, pretrain, transfer_structure
from tljupyter.transfer.heads import solve_head
from tljupyter.transfer.inputs import DomainInputs
from tljupyter.transfer.multitask import MultiTask
from tljupyter.transfer.penalties import BSS, DELTA, L2SP, CoTuning, Distillation, WeightAverage
from tljupyter.transfer.pooling import TargetOnly
from tljupyter.transfer.probe import LinearProbe, stage_features
from tljupyter.transfer.selftraining import FixMatch, PseudoLabels, SelfTrained, surest
from tljupyter.transfer.terms import Fitting
from tljupyter.transfer.thawing import CHOICES, SCHEDULES, OneStage, ThawByEvidence, gain_over

SHORT = TrainingSpec(epochs=3, batch_size=32)


@cache
def digits(*classes) -> Domain:
    data = load_digits()
    keep = np.isin(data.target, classes)
    return read_arrays(
        (data.images[keep] / 16).astype(np.float32), [str(t) for t in data.target[keep]], name="digits"
    )


def few(domain, labels_per_class=4, seed=0):
    return domain.take(few_shot_draw(domain.labels, labels_per_class, seed).train)


@cache
def known():
    "A network that knows 0, 1 and 2."
    spec = TrainingSpec(epochs=2, batch_size=64, learning_rate=3e-3)
    untrained = load_backbone("digits_convnet", weights="random", seed=0)
    return pretrain(digits(0, 1, 2), untrained, spec)[0]


def backbone():
    return known().backbone


TARGET = (3, 8, 9)


@cache
def target():
    return few(digits(*TARGET))


@cache
def pool():
    return digits(*TARGET).take(np.arange(60, 120))


@cache
def teacher():
    return LinearProbe(backbone()).fit(target())


def tuned(**parameters):
    "With everything that any term may need."
    given = {"plan": "all", "spec": SHORT, "augmentations": Augmentations(("translate",)), "views": 2}
    return FineTuned(backbone(), **(given | parameters))


WAYS = {
    **{
        f"term {name}": lambda name=name: tuned(terms=(name,))
        for name in TERMS
        if name not in ("distillation", "co-tuning", "multi-task")
    },
    "co-tuning": lambda: tuned(terms=(CoTuning(known()),)),
    "distillation": lambda: tuned(terms=(Distillation(teacher()),)),
    "two terms": lambda: tuned(terms=(L2SP(0.5), WeightAverage(decay=0.9))),
    **{f"moves {name}": lambda name=name: tuned(moves=name) for name in PARTS},
    **{f"plan {name}": lambda name=name: tuned(plan=name) for name in SCHEDULES},
    "one stage": lambda: tuned(plan=OneStage(2)),
    "evidence on biases under L2-SP": lambda: tuned(plan=ThawByEvidence(2), moves="biases", terms=("l2-sp",)),
    "from a random head": lambda: tuned(probe_first=False),
}


def moved(model) -> set[str]:
    before, after = model.backbone.state_dict(), model.network_.backbone.state_dict()
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


# The contract


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_the_contract(way):
    model, test = WAYS[way](), digits(*TARGET).take(np.arange(20))
    before = backbone().weights_digest
    found = model.fit(target(), unlabelled=pool()).predict_proba(test)
    assert found.shape == (20, 3) and np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert backbone().weights_digest == before  # the source network is never touched
    again = clone(model)
    assert again.terms == model.terms and again.moves == model.moves and again.plan == model.plan
    np.testing.assert_array_equal(again.fit(target(), unlabelled=pool()).predict_proba(test), found)
    assert all(isinstance(p, nn.Parameter) for p in model.network_.backbone.module.parameters())
    assert model.trainable_per_label_ == model.trainable_ / len(target())


def test_a_second_fit_begins_anew():
    model = tuned(terms=(L2SP(), DELTA(), WeightAverage(), FixMatch()))
    first, second = (model.fit(target(), unlabelled=pool()).predict_proba(pool()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["term delta with attention", "two terms", "moves lora", "one stage"])
def test_one_label_a_class_and_a_class_without_labels(way):
    domain = digits(*TARGET)
    one = WAYS[way]().fit(few(domain, 1), unlabelled=pool())
    assert one.predict_proba(domain.take([0, 1])).shape == (2, 3)
    without = domain.take(np.flatnonzero(domain.labels != 2)[:9])
    found = WAYS[way]().fit(without, unlabelled=pool()).predict_proba(domain.take([0, 1]))
    assert found.shape == (2, 3) and np.isfinite(found).all()


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"terms": ("l2sp",)}, "l2-sp"),
        ({"moves": "norm"}, "norms"),
        ({"plan": "gradul"}, "gradual"),
        ({"terms": ("co-tuning",)}, "head"),
        ({"terms": ("multi-task",)}, "two tasks"),
        ({"terms": ("distillation",)}, "teacher"),
        ({"terms": (Distillation(LinearProbe(None)),)}, "not fitted"),
        ({"terms": (PseudoLabels(),)}, "unlabelled"),
        ({"terms": (FixMatch(),)}, "unlabelled"),
    ],
)
def test_what_cannot_be_is_refused(parameters, word):
    with pytest.raises(Refusal, match=word):
        tuned(**parameters).fit(target())


def test_other_refusals():
    with pytest.raises(Refusal, match="augmentations"):
        tuned(terms=(FixMatch(),), augmentations=None).fit(target(), unlabelled=pool())
    with pytest.raises(Refusal, match='no class "3"'):
        tuned(terms=(Distillation(known()),)).fit(target())
    with pytest.raises(Refusal, match="2 classes apart"):
        two = LinearProbe(backbone()).fit(few(digits(3, 8)))
        tuned(terms=(Distillation(two),)).fit(target())
    other = transfer_structure(random_backbone("small_groupnorm"), ("a", "b"))
    other.head.__init__(7, 2)
    with pytest.raises(Refusal, match="7 features"):
        tuned(terms=(CoTuning(other),)).fit(target())


def test_a_part_that_the_network_lacks_is_refused():
    squeezed = random_backbone("squeezenet1_1")
    plan, network = FreezePlan.last(squeezed, 1), transfer_structure(squeezed, ("a", "b"))
    weights = sum(p.numel() for p in network.backbone.module.parameters())
    with pytest.raises(Refusal, match="Norms"), moving(PARTS["norms"], network, plan):
        pass
    assert sum(p.numel() for p in network.backbone.module.parameters()) == weights


# What moves


@pytest.mark.slow
def test_only_the_chosen_part_of_the_chosen_stages_moves():
    state = dict(backbone().module.named_modules())
    norms = {
        f"{path.partition('.')[2]}.{name}"
        for path, layer in state.items()
        if isinstance(layer, NORMALISATIONS)
        for name in ("weight", "bias")
    }
    assert moved(tuned(moves="norms").fit(target())) <= norms
    assert {name.rpartition(".")[2] for name in moved(tuned(moves="biases").fit(target()))} == {"bias"}
    last = backbone().stage_names[-2]
    only = moved(tuned(moves="biases", plan=FreezePlan.last(backbone(), 1)).fit(target()))
    assert only and all(name.startswith(last) for name in only)
    weights = moved(tuned(moves="lora").fit(target()))
    assert weights and all(name.endswith("weight") for name in weights) and not weights & norms


def test_moving_statistics_follow_the_plan_whatever_part_moves():
    plan = FreezePlan.all(backbone(), "moving")
    found = moved(tuned(moves="norms", plan=plan).fit(target()))
    assert any("running_mean" in name for name in found)
    assert not any("running" in name for name in moved(tuned(moves="norms").fit(target())))


def test_a_part_of_every_stage_is_the_default_of_a_small_part():
    assert all(not s.frozen for s in tuned(plan=None, moves="biases").fit(target()).plan_.stages)
    assert any(s.frozen for s in tuned(plan=None).fit(target()).plan_.stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenet_v3_small", "vit_tiny_patch16_224"])
def test_lora_begins_at_the_source_and_is_merged_exactly(name):
    source = random_backbone(name)
    network = transfer_structure(source, ("a", "b"))
    x = torch.randn(2, 3, *source.input.size, generator=torch.Generator().manual_seed(0))
    before, names = network.features(x).detach(), set(network.backbone.state_dict())
    with moving(LoRA(2), network, FreezePlan.last(source, 2)) as count:
        torch.testing.assert_close(network.features(x).detach(), before)
        own = [p for p in network.backbone.module.parameters()]
        assert sum(p.numel() for p in own) > 0 and count < source.parameters / 20
        with torch.no_grad():
            for parameter in own:
                parameter.add_(0.02)
        trained = network.features(x).detach()
    assert (trained - before).abs().max() > 1e-3
    torch.testing.assert_close(network.features(x).detach(), trained, atol=1e-3, rtol=1e-3)
    assert set(network.backbone.state_dict()) == names


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tljupyter.transfer.adapters.find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"tljupyter\[adapters\]"):
        tuned(moves="lora").fit(target())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("way", [way for way in WAYS if not way.startswith("plan")])
def test_every_way_trains_on_a_gpu(way):
    model = WAYS[way]()
    model.spec = replace(SHORT, device="cuda", precision="bfloat16")
    found = model.fit(target(), unlabelled=pool()).predict_proba(pool())
    assert np.isfinite(found).all() and next(model.network_.head.parameters()).is_cuda


# Terms by their formulas


def a_step(network, boundary=0, rows=6):
    inputs = DomainInputs(network.backbone, target().items)
    x = torch.tensor(np.asarray(inputs.at(boundary))[:rows, 0])
    features = network.features(x, boundary)
    labels = torch.as_tensor(target().labels[:rows])
    return Step(
        network, boundary, x, features, network.head(features), labels, np.arange(rows), step=5, steps=10
    )


def begun(spec, **given):
    network = transfer_structure(backbone(), target().classes)
    network.backbone.module.eval()
    term = spec.term(Fitting(target(), DomainInputs(backbone(), target().items), **given))
    term.begin(network, SHORT)
    return network, term


def nudged(network, by=0.1):
    with torch.no_grad():
        for parameter in network.backbone.module.parameters():
            parameter.add_(by)


def test_l2sp_is_half_the_squared_way_from_the_source():
    network, term = begun(L2SP(strength=2.0, head=0.0))
    assert float(term.loss(a_step(network)).detach()) == 0
    nudged(network)
    weights = sum(p.numel() for p in network.backbone.module.parameters())
    assert float(term.loss(a_step(network)).detach()) == pytest.approx(weights * 0.01, rel=1e-3)


@pytest.mark.parametrize("attention", [False, True])
def test_delta_is_nothing_at_the_source_and_grows(attention):
    network, term = begun(DELTA(1.0, attention))
    assert float(term.loss(a_step(network)).detach()) == pytest.approx(0, abs=1e-6)
    nudged(network, 0.01)
    near = float(term.loss(a_step(network)).detach())
    nudged(network, 0.05)
    assert 0 < near < float(term.loss(a_step(network)).detach())
    for weights in term.weights.values():
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4) and weights.min() >= 0
    term.end(network)
    assert not any(stage.module._forward_hooks for stage in network.backbone.stages)


def test_attention_weighs_a_channel_by_what_silencing_it_costs():
    network, term = begun(DELTA(1.0, True, sharpness=1.0))
    head = solve_head(stage_features(backbone(), target().items), target().labels, 3, 0.1)
    with torch.no_grad():
        term.head.weight.copy_(torch.as_tensor(head.weight))
        term.head.bias.copy_(torch.as_tensor(head.bias))
    term.loss(a_step(network))
    features = torch.tensor(stage_features(backbone(), target().items))
    labels, costs = torch.as_tensor(target().labels), []
    for channel in range(features.shape[1]):
        silenced = features.clone()
        silenced[:, channel] = 0
        costs.append(float(nn.functional.cross_entropy(term.head(silenced), labels).detach()))
    weights = term.weights[backbone().stage_names[-1]].detach().numpy()
    assert np.corrcoef(np.argsort(np.argsort(costs)), np.argsort(np.argsort(weights)))[0, 1] > 0.7


def test_bss_is_the_smallest_singular_values():
    network, term = begun(BSS(1.0, 2))
    step = a_step(network)
    values = np.linalg.svd(step.features.detach().numpy(), compute_uv=False)
    assert float(term.loss(step).detach()) == pytest.approx((values[-2:] ** 2).sum(), rel=1e-3)
    assert float(term.loss(a_step(network, rows=2)).detach()) == 0


def test_cotuning_relates_classes_and_trains_the_source_head():
    network, term = begun(CoTuning(known()))
    assert term.relation.shape == (3, 3)
    torch.testing.assert_close(term.relation.sum(1), torch.ones(3))
    step = a_step(network)
    wanted = -(term.relation[step.labels] * term.head(step.features).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(term.loss(step), 2.3 * wanted)
    solved = begun(CoTuning(), source=digits(0, 1, 2))[1]
    assert solved.relation.shape == (3, 3)
    np.testing.assert_allclose(solved.relation, term.relation, atol=0.6)


@pytest.mark.slow
def test_joint_training_keeps_the_source_that_fine_tuning_forgets():
    source = digits(0, 1, 2)
    spec = TrainingSpec(epochs=12, learning_rate=3e-3)

    def left(terms) -> float:
        "How well a head solved on a few source items tells the others apart on the trained stages."
        model = FineTuned(backbone(), "all", spec, terms=terms).fit(target(), source)
        probe = LinearProbe(model.network_.backbone).fit(few(source))
        return probe.score(source, source.labels)

    assert left((MultiTask(strength=3.0),)) > left(())
    network, term = begun(MultiTask(strength=2.0), source=source)
    rows = np.random.default_rng([0, 2]).integers(0, len(source), 6)
    images = torch.from_numpy(np.stack([network.backbone.input(source.items[i]) for i in rows]))
    said = term.head(network.backbone.module(images))
    wanted = 2 * torch.nn.functional.cross_entropy(said, torch.as_tensor(source.labels[rows]))
    torch.testing.assert_close(term.loss(a_step(network)), wanted)


def test_an_average_is_the_mean_of_the_last_steps():
    network, term = begun(WeightAverage(start=0.5))
    parameter = next(network.backbone.module.parameters())
    for number in range(10):
        term.loss(replace(a_step(network), step=number))
        with torch.no_grad():
            parameter.fill_(number)
        term.after(network)
    term.end(network)
    torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 7.0))
    assert "5 steps" in term.note


def test_distillation_is_nothing_where_the_student_is_the_teacher():
    network, term = begun(Distillation(teacher(), temperature=3.0))
    with torch.no_grad():
        network.head.weight.copy_(torch.as_tensor(teacher().head_.weight))
        network.head.bias.copy_(torch.as_tensor(teacher().head_.bias))
    assert float(term.loss(a_step(network)).detach()) == pytest.approx(0, abs=1e-3)
    nudged(network)
    assert float(term.loss(a_step(network)).detach()) > 1e-3


def test_a_teacher_is_heard_about_the_pool_too():
    alone = tuned(terms=(Distillation(teacher()),)).fit(target())
    helped = tuned(terms=(Distillation(teacher()),)).fit(target(), unlabelled=pool())
    assert not np.array_equal(alone.predict_proba(pool()), helped.predict_proba(pool()))


def test_a_floor_that_nothing_passes_changes_nothing_and_says_so():
    plain = tuned().fit(target()).predict_proba(pool())
    idle = tuned(terms=(FixMatch(floor=1.1),)).fit(target(), unlabelled=pool())
    np.testing.assert_allclose(idle.predict_proba(pool()), plain, atol=1e-5)
    assert "0% of the unlabelled" in idle.notes_[0]


# Schedules


def test_schedules_are_plans():
    for name, make in SCHEDULES.items():
        plan = make(backbone())
        assert FreezePlan.from_yaml(plan.to_yaml()) == plan, name
    rates = [
        s.rate for s in SCHEDULES["discriminative"](backbone()).stages if s.name.startswith(("stem", "block"))
    ]
    assert rates == sorted(rates) and len(set(rates)) == len(rates)


def test_evidence_thaws_what_gains_more_than_its_error():
    model = tuned(plan=ThawByEvidence(folds=2)).fit(target())
    first, *others = model.decisions_
    assert first.moves == "head only" and others
    for decision in others:
        assert decision.taken == (decision.gain > decision.standard_error)
    assert all(d.taken for d in others[:-1])  # it stops at the first that gains too little
    trained = sum(not s.frozen for s in model.plan_.stages if backbone().stage(s.name).parameters)
    assert trained == sum(d.taken for d in others)


def test_surgery_takes_the_stage_with_the_smallest_loss():
    model = tuned(plan=OneStage(folds=2)).fit(target())
    stages = [d for d in model.decisions_ if d.moves != "head only"]
    best = min(stages, key=lambda d: d.log_loss)
    assert [d.moves for d in stages if d.taken] == [best.moves]
    assert [s.name for s in model.plan_.stages if not s.frozen] == [best.moves]


@pytest.mark.parametrize("name", CHOICES)
def test_without_labels_to_hold_out_a_choice_says_so(name):
    model = tuned(plan=name).fit(few(digits(*TARGET), 1))
    assert model.decisions_ == () and "Too few labels" in model.notes_[0]


def test_the_error_of_a_gain_counts_groups():
    rng = np.random.default_rng(0)
    gains, groups = np.repeat(rng.normal(0, 1, 50), 4), np.repeat(np.arange(50), 4)
    alone, together = gain_over(gains, 0 * gains)[1], gain_over(gains, 0 * gains, groups)[1]
    assert alone == pytest.approx(gains.std(ddof=1) / np.sqrt(200), rel=1e-3)
    assert together == pytest.approx(gains[::4].std(ddof=1) / np.sqrt(50), rel=1e-3)


def test_judging_folds_get_fewer_before_they_fail():
    assert len(judging_folds(np.array([0, 0, 0, 1, 1]), None, 5)) == 2
    assert judging_folds(np.array([0, 0, 1]), None, 5) == []
    parts = judging_folds(np.arange(12) % 2, np.arange(12) // 4, 5)
    assert len(parts) == 3


# What all trained networks share


class StopAt(Quiet):
    def __init__(self, step):
        self.left = step

    def ask(self):
        self.left -= 1
        return Orders(stop=self.left < 0)


def test_a_training_stopped_in_its_first_epoch_predicts_with_what_it_has():
    model = tuned(spec=replace(SHORT, batch_size=4), observer=StopAt(2)).fit(target())
    assert model.history_ == [] and model.boundary_ == 0
    inputs = DomainInputs(backbone(), pool().items)
    whole = model.network_.logits(torch.tensor(np.asarray(inputs.at(0))[:, 0])).softmax(1)
    np.testing.assert_allclose(model.predict_proba(pool()), whole.detach(), atol=1e-6)


def test_from_scratch_shares_the_base():
    scratch = FromScratch(ScratchNetwork(backbone(), 4)).fit(target())
    assert scratch.boundary_ == 0 and scratch.history_ and scratch.predict_proba(pool()).shape == (60, 3)


# Rows of numbers


def rows(items, labels, classes=("a", "b", "c")):
    names = np.array([str(i) for i in range(len(items))])
    return Domain(
        "rows", ArrayItems(np.asarray(items)), np.asarray(labels), classes, None, None, names, "table"
    )


@cache
def islands(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(300) % 3
    places = np.array([[0, 0], [4, 0], [0, 4]])[labels]
    return places + rng.normal(size=(300, 2)), labels


def test_self_training_keeps_the_contract():
    x, y = islands()
    few_rows, unlabelled, test = rows(x[:6], y[:6]), rows(x[6:150], y[6:150]), rows(x[150:], y[150:])
    model = SelfTrained().fit(few_rows, unlabelled=unlabelled)
    found = model.predict_proba(test)
    assert found.shape == (150, 3) and np.isfinite(found).all()
    assert model.score(test, test.labels) > 0.9
    assert model.out_of_fold_.shape == (6, 3)
    np.testing.assert_array_equal(
        clone(model).fit(few_rows, unlabelled=unlabelled).predict_proba(test), found
    )
    assert any("pseudo-label" in note for note in model.notes_)


@pytest.mark.slow
def test_self_training_helps_on_average():
    data, gains = load_digits(), []
    every = rows(data.data / 16, data.target, tuple("0123456789"))
    for seed in range(4):
        labelled = few_shot_draw(data.target, 3, seed).train
        others = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(every)), labelled))
        few_rows, unlabelled, test = every.take(labelled), every.take(others[:300]), every.take(others[300:])
        helped = SelfTrained(floor=0.5, folds=2).fit(few_rows, unlabelled=unlabelled)
        gains.append(helped.score(test, test.labels) - TargetOnly().fit(few_rows).score(test, test.labels))
    assert np.mean(gains) > 0.02


def test_self_training_at_the_edges():
    x, y = islands()
    unlabelled = rows(x[100:], y[100:])
    for labels in ([0, 1, 2], [0, 0, 1, 1], [1, 1, 1]):
        chosen = np.concatenate([np.flatnonzero(y == c)[:1] + 3 * i for i, c in enumerate(labels)])
        model = SelfTrained().fit(rows(x[chosen], y[chosen]), unlabelled=unlabelled)
        assert np.isfinite(model.predict_proba(unlabelled)).all()
    constant = np.column_stack([x, np.full(300, 3.0), np.zeros((300, 50))])
    wide = SelfTrained().fit(rows(constant[:6], y[:6]), unlabelled=rows(constant[100:], y[100:]))
    assert np.isfinite(wide.predict_proba(rows(constant, y))).all()
    idle = SelfTrained(floor=0.999999).fit(rows(x[:6], y[:6]), unlabelled=unlabelled)
    assert idle.notes_[0].startswith("0 of 200")
    plain = TargetOnly().fit(rows(x[:6], y[:6]))
    np.testing.assert_allclose(idle.predict_proba(unlabelled), plain.predict_proba(unlabelled))


def test_self_training_refuses_what_it_cannot_use():
    x, y = islands()
    with pytest.raises(Refusal, match="unlabelled"):
        SelfTrained().fit(rows(x[:6], y[:6]))
    with pytest.raises(Refusal, match="floor=1"):
        SelfTrained(floor=1).fit(rows(x[:6], y[:6]), unlabelled=rows(x[6:], y[6:]))


def test_the_surest_of_each_class():
    said = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.45, 0.55], [0.3, 0.7]])
    np.testing.assert_array_equal(surest(said, 0.0, 0.5), [0, 0, -1, -1, 1])
    np.testing.assert_array_equal(surest(said, 0.65, 1.0), [0, 0, -1, -1, 1])


# Real films


@pytest.mark.slow
def test_a_low_rank_change_learns_from_real_films(data_dir):
    path = data_dir / "weights_small_pretrained" / "squeezenet1_0_imagenet.safetensors"
    source = load_backbone("squeezenet1_0", path)
    source = replace(source, input=source.input.at(96))
    films = read_images(data_dir / "lung_kermany_pediatric")
    drawn = few_shot_draw(films.labels, 10, seed=0).train
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(films)), drawn))[:80]
    few_films, test = films.take(drawn), films.take(others)
    plan = FreezePlan.last(source, 2)
    model = FineTuned(
        source, plan, replace(SHORT, epochs=6), moves="lora", terms=("l2-sp", "weight average")
    ).fit(few_films)
    recall = [(model.predict(test) == test.labels)[test.labels == code].mean() for code in (0, 1)]
    assert np.mean(recall) > 0.65 and model.trainable_per_label_ < 2000
    assert model.boundary_ > 0  # frozen stages were computed once
    with pytest.raises(Refusal, match="Norms"):
        FineTuned(source, plan, moves="norms").fit(few_films)
