"""What a plan says is frozen stays as it is when a real optimiser takes real steps, and what it says moves, moves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tljupyter.backbones.registry import Backbone
from tljupyter.backbones.stages import normalisations
from tljupyter.backbones.weights import load_backbone
from tljupyter.freezing import FreezePlan, StagePlan
from tljupyter.refusals import Refusal


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Small arrays: more threads only wait for each other."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backbone_of(name: str) -> Backbone:
    return load_backbone(
        name, "random", input_size=32 if name in ("squeezenet1_0", "small_groupnorm") else None
    )


def random_plan(backbone: Backbone, rng: np.random.Generator) -> FreezePlan:
    "Any plan: every stage frozen or not, moving or not, thawing or not."

    def stage(name: str) -> StagePlan:
        frozen = bool(rng.random() < 0.7)
        thaw_at = int(rng.integers(1, 4)) if frozen and rng.random() < 0.5 else None
        rate, moving = float(rng.random() + 0.1), rng.random() < 0.3
        return StagePlan(name, frozen, rate, "moving" if moving else "frozen", thaw_at)

    return FreezePlan(
        tuple(stage(name) for name in backbone.stage_names), head_rate=float(rng.random() + 0.1)
    )


def train(backbone: Backbone, plan: FreezePlan, epoch: int) -> None:
    "One epoch of two steps on noise, as any trainer would do it."
    images = torch.rand(8, backbone.input.depth, *backbone.input.size)
    head = nn.Linear(backbone.features, 2)
    plan.apply(backbone, epoch)
    optimiser = torch.optim.SGD(plan.groups(backbone, epoch, 0.1, head), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(backbone.module(images)), torch.arange(8) % 2).backward()
        optimiser.step()


def outputs(backbone: Backbone, boundary: int, images: torch.Tensor) -> torch.Tensor:
    "What leaves the first stages in evaluation, without changing the modes of the backbone."
    with torch.no_grad():
        return backbone.copy().prefix(boundary)(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_convnet", "resnet20_cifar", "small_groupnorm", "squeezenet1_0"])
def test_nothing_before_the_boundary_changes_and_the_stage_after_it_does(name):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    spec = backbone_of(name).input
    images = torch.rand(4, spec.depth, *spec.size)
    boundaries = set()
    for _ in range(12):
        backbone, epoch = backbone_of(name), int(rng.integers(0, 4))
        plan = random_plan(backbone, rng)
        boundary = plan.boundary(backbone, epoch)
        boundaries.add(boundary)
        fixed = outputs(backbone, boundary, images)
        after = outputs(backbone, boundary + 1, images) if boundary < len(backbone.stages) else None
        train(backbone, plan, epoch)
        assert torch.equal(outputs(backbone, boundary, images), fixed)
        if after is not None and backbone.stages[boundary].parameters:
            assert not torch.equal(outputs(backbone, boundary + 1, images), after)
    assert len(boundaries) > 2  # the plans were different enough to mean something


def test_batch_statistics_that_move_are_not_frozen():
    for name, has_statistics in (
        ("resnet20_cifar", True),
        ("digits_convnet", True),
        ("squeezenet1_0", False),
    ):
        backbone = backbone_of(name)
        probe = FreezePlan.linear_probe(backbone)
        assert probe.boundary(backbone) == len(backbone.stages)
        stages = [dataclasses.replace(stage, normalisation="moving") for stage in probe.stages]
        assert FreezePlan(tuple(stages)).boundary(backbone) == (0 if has_statistics else len(stages))
        later = (*probe.stages[:2], *stages[2:])
        assert FreezePlan(later).boundary(backbone) == (2 if has_statistics else len(stages))


@pytest.mark.parametrize("normalisation", ["frozen", "moving"])
def test_normalisation_follows_its_own_policy(normalisation):
    backbone = backbone_of("resnet20_cifar")
    plan = FreezePlan.all(backbone, normalisation=normalisation)
    before = {n: v.clone() for n, v in backbone.state_dict().items() if "running" in n or "tracked" in n}
    train(backbone, plan, epoch=0)
    moved = [n for n, v in before.items() if not torch.equal(v, backbone.state_dict()[n])]
    assert len(moved) == (len(before) if normalisation == "moving" else 0)
    for stage in backbone.stages:
        assert stage.module.training
        assert all(layer.training == (normalisation == "moving") for layer in normalisations(stage.module))
        assert all(p.requires_grad for p in stage.module.parameters())  # its scale and shift are trained


def test_frozen_stages_do_not_drop_out():
    backbone = load_backbone(
        "efficientnet_b0", "random", input_size=32
    )  # drops whole residual branches in training
    images = torch.rand(16, 3, 32, 32)
    for plan, same in (
        (FreezePlan.linear_probe(backbone), True),
        (FreezePlan.all(backbone, "frozen"), False),
    ):
        plan.apply(backbone)
        with torch.no_grad():
            assert torch.equal(backbone.module(images), backbone.module(images)) == same


def test_the_boundary_moves_with_the_epoch():
    backbone = backbone_of("resnet20_cifar")
    plan = FreezePlan.gradual(backbone, every=3, decay=0.5)
    assert [plan.boundary(backbone, epoch) for epoch in range(0, 15)] == [5] * 3 + [3] * 3 + [2] * 3 + [
        1
    ] * 3 + [0] * 3
    assert [(s.name, s.rate, s.thaw_at) for s in plan.stages] == [
        ("stem", 0.0625, 12),
        ("layer1", 0.125, 9),
        ("layer2", 0.25, 6),
        ("layer3", 0.5, 3),
        ("pool", 1.0, None),
    ]
    some = FreezePlan.gradual(backbone, every=1, stages=2)
    assert [some.boundary(backbone, epoch) for epoch in (0, 1, 2, 9)] == [5, 3, 2, 2]


def test_groups_have_the_rates_of_the_plan():
    backbone, head = backbone_of("digits_convnet"), nn.Linear(64, 5)
    stages = (
        StagePlan("stem"),
        StagePlan("block2", rate=0.25, thaw_at=2),
        StagePlan("block3", frozen=False, rate=0.5),
        StagePlan("pool", frozen=False),
    )
    plan = FreezePlan(stages, head_rate=2.0)

    def rates(epoch: int, with_head: nn.Module | None) -> dict:
        return {g["name"]: g["lr"] for g in plan.groups(backbone, epoch, 0.01, with_head)}

    assert rates(0, head) == pytest.approx({"block3": 0.005, "head": 0.02})
    assert rates(2, head) == pytest.approx({"block2": 0.0025, "block3": 0.005, "head": 0.02})
    assert list(rates(2, None)) == ["block2", "block3"]
    assert FreezePlan.linear_probe(backbone).groups(backbone, 0, 0.01) == []
    params = [p for g in plan.groups(backbone, 2, 0.01, head) for p in g["params"]]
    trained = [*backbone.parameters_of("block2"), *backbone.parameters_of("block3"), *head.parameters()]
    assert len(params) == len(trained) and all(a is b for a, b in zip(params, trained, strict=True))


def test_last_counts_stages_that_have_parameters():
    backbone = backbone_of("digits_convnet")
    plans = [FreezePlan.last(backbone, stages=n) for n in range(4)]
    assert [[s.name for s in p.stages if not s.frozen] for p in plans] == [
        [],
        ["block3"],
        ["block2", "block3"],
        ["stem", "block2", "block3"],
    ]
    assert [p.boundary(backbone) for p in plans] == [4, 2, 1, 0]
    with pytest.raises(Refusal, match="has 3 stages with parameters"):
        FreezePlan.last(backbone, stages=4)


def test_yaml_round_trip_is_exact():
    backbone, rng = backbone_of("squeezenet1_0"), np.random.default_rng(1)
    plans = [random_plan(backbone, rng) for _ in range(30)]
    plans += [
        FreezePlan((StagePlan("a: b", rate=1e-7), StagePlan("yes", False), StagePlan("3")), head_rate=1e6)
    ]
    for plan in plans:
        text = plan.to_yaml()
        assert FreezePlan.from_yaml(text) == plan
        assert FreezePlan.from_yaml(text).to_yaml() == text


def test_short_yaml_takes_the_defaults():
    plan = FreezePlan.from_yaml("stages: [{name: stem}, {name: block2, frozen: false, rate: 1}]")
    assert plan == FreezePlan((StagePlan("stem"), StagePlan("block2", frozen=False)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names and values"),
        ("stages: [", "not YAML"),
        ("[1, 2]", "names and values"),
        ("head_rate: 1", "list of stages"),
        ("stages: [{frozen: true}]", "stage 1: name is missing"),
        ("stages: [{name: stem, frosen: true}]", 'Did you mean "frozen"'),
        ("stages: []\nhead_rat: 1", 'Did you mean "head_rate"'),
        ("stages: [{name: stem, frozen: 1}]", "frozen = 1"),
        ("stages: [{name: stem, rate: fast}]", "rate = 'fast'"),
        ("stages: [{name: stem, rate: 0}]", "rate = 0"),
        ("stages: [{name: stem, rate: .nan}]", "rate = nan"),
        ("stages: [{name: stem, normalisation: thawed}]", "choose one of frozen, moving"),
        ("stages: [{name: stem, thaw_at: 0}]", "thaw_at = 0"),
        ("stages: [{name: stem, thaw_at: 1.5}]", "thaw_at = 1.5"),
        ("stages: [{name: stem, frozen: false, thaw_at: 2}]", "not frozen"),
        ("stages: [{name: 3}]", "name is not text"),
        ("stages: [{name: stem}]\nhead_rate: -1", "head_rate = -1"),
        ("stages: [!!python/object/apply:os.system ['true']]", "not YAML"),
    ],
)
def test_what_is_not_a_plan_is_refused(text, words):
    with pytest.raises(Refusal, match=words):
        FreezePlan.from_yaml(text)


def test_a_plan_of_another_backbone_is_refused():
    digits, resnet = backbone_of("digits_convnet"), backbone_of("resnet20_cifar")
    plan = FreezePlan.all(digits)
    for use in (plan.boundary, plan.apply, plan.table, lambda b: plan.groups(b, 0, 0.1)):
        with pytest.raises(Refusal, match='resnet20_cifar has no stage "block2"'):
            use(resnet)
    with pytest.raises(Refusal, match="list every stage of digits_convnet once, in this order: stem, block2"):
        FreezePlan(plan.stages[:2]).boundary(digits)
    with pytest.raises(Refusal, match="once, in this order"):
        FreezePlan(plan.stages[::-1]).boundary(digits)


def test_table_adds_up():
    backbone = backbone_of("digits_convnet")
    *rows, total = FreezePlan.gradual(backbone, stages=1).table(backbone, labels=10)
    assert [row["stage"] for row in rows] == list(backbone.stage_names)
    assert total["parameters"] == sum(row["parameters"] for row in rows) == backbone.parameters
    assert total["trainable"] == sum(row["trainable"] for row in rows) == backbone.stage("block3").parameters
    assert total["trainable_per_label"] == backbone.stage("block3").parameters / 10
    assert rows[-1]["normalisation"] is None and rows[0]["normalisation"] == "frozen"
    assert "trainable_per_label" not in FreezePlan.all(backbone).table(backbone)[-1]
