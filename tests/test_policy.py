"""The policy: the first sound rule decides, its turning points are where it says, and a budget is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.readers import read_arrays
from tljupyter.evidence import Situation, choose_strategy
from tljupyter.evidence.policy import (
    QUANTITIES,
    REFUSED,
    RULES,
    STRATEGIES,
    Bound,
    check_strategy,
    estimated_seconds,
    situation_of,
)
from tljupyter.evidence.timing import StepSeconds, measure_steps
from tljupyter.figures.policy import choice_card, rules_table
from tljupyter.refusals import Refusal
from tljupyter.training import TrainingSpec
from tljupyter.transfer.methods import METHODS

LARGE, MIDDLE, SMALL = 25_557_032, 735_424, 23_408
INVENTED = StepSeconds(frozen=0.02, partial=0.03, lora=0.06, full=0.07, head=0.005)


def situation(labels, parameters=MIDDLE, **more) -> Situation:
    return Situation(labels, **({"classes": 2, "dimension": 512, "parameters": parameters} | more))


def random_situation(rng) -> Situation:
    labels = int(np.exp(rng.uniform(0, 7)))
    groups = int(rng.integers(1, labels + 1)) if rng.random() < 0.4 else None
    return Situation(
        labels_per_class=labels,
        classes=int(rng.integers(2, 12)),
        dimension=int(np.exp(rng.uniform(2, 8))),
        parameters=int(np.exp(rng.uniform(8, 19))) if rng.random() < 0.9 else 0,
        groups_per_class=groups,
        shift=float(rng.uniform(0, 2)) if rng.random() < 0.5 else None,
        modality="image" if rng.random() < 0.9 else "text",
        seconds=StepSeconds(*rng.exponential([0.01, 0.02, 0.05, 0.05, 0.002])),
    )


@pytest.mark.parametrize(
    "given, strategy, rule",
    [
        (situation(3), "prototype", "few labels"),
        (situation(19), "prototype", "few labels"),
        (situation(20), "linear probe", "labels for a head"),
        (situation(49), "linear probe", "labels for a head"),
        (situation(50), "full fine-tuning", "labels enough for the network"),
        (situation(50, 11_176_512), "partial fine-tuning", "some labels"),
        (situation(50, LARGE), "LoRA", "some labels, large network"),
        (situation(200, LARGE), "full fine-tuning", "many labels"),
        (situation(30, SMALL), "full fine-tuning", "small network"),
        (situation(30, shift=1.49), "linear probe", "labels for a head"),
        (situation(30, shift=1.5), "partial fine-tuning", "far away"),
        (situation(30, LARGE, shift=1.9), "LoRA", "far away, large network"),
        (situation(45, 5_000_000, dimension=16), "partial fine-tuning", "the head is full"),
        (situation(300, groups_per_class=6), "prototype", "few labels"),
        (situation(300, 0), "linear probe", "nothing to move"),
        (situation(300, modality="signal"), "linear probe", "nothing to move"),
    ],
)
def test_the_rules_say_what_they_say(given, strategy, rule):
    choice = choose_strategy(given)
    assert (choice.strategy, choice.rule.name) == (strategy, rule)
    assert rule in str(choice) and choice.rule.why in str(choice)


def test_the_first_rule_that_holds_and_is_sound_decides():
    rng = np.random.default_rng(0)
    fired = set()
    for _ in range(120):
        given = random_situation(rng)
        choice = choose_strategy(given)
        first = next(r for r in RULES if r.holds(given) and r.strategy not in choice.left_out)
        assert choice.rule == first and choice.strategy == first.strategy
        assert set(choice.passed_over) == {r.name for r in RULES[: RULES.index(first)] if r.holds(given)}
        fired.add(first.name)
    assert len(fired) >= len(RULES) - 3


def test_every_strategy_is_a_listed_method_that_learns():
    rng = np.random.default_rng(0)
    codes = np.arange(24) % 2
    images = rng.normal(0.2, 0.1, (24, 8, 8)) + 0.5 * codes[:, None, None]
    few = read_arrays(images.clip(0, 1).astype(np.float32), [str(c) for c in codes])
    backbone = load_backbone("digits_convnet", weights="random")
    for name, strategy in STRATEGIES.items():
        assert strategy.method in METHODS
        choice = replace(
            choose_strategy(situation_of(few, backbone)),
            strategy=name,
            method=strategy.method,
            parameters=strategy.parameters,
        )
        model = choice.make(backbone, random_state=1)
        if strategy.trains_network:
            assert METHODS[strategy.method].modality == "images"
            model.set_params(spec=TrainingSpec(epochs=2, learning_rate=1e-3))
            with pytest.raises(Refusal, match="give the backbone"):
                choice.make()
        model.fit(few)
        assert (model.predict_proba(few).argmax(1) == codes).mean() > 0.9
        trained = getattr(model, "trainable_", 0)
        assert (trained > 0) == strategy.trains_network
    rows = Domain(
        "rows", ArrayItems(images.reshape(24, -1)), codes, ("a", "b"), None, None, np.arange(24).astype(str)
    )
    assert choose_strategy(situation_of(rows, dimension=64)).make().fit(rows).predict_proba(rows).shape == (
        24,
        2,
    )


@pytest.mark.slow
def test_turning_points_are_where_they_are_said_to_be():
    rng, seen = np.random.default_rng(1), set()
    step = {"budget_seconds": 0.2, "shift": 0.02}
    for number in range(40):
        given = random_situation(rng)
        costs = sorted(estimated_seconds(given).values())
        budget = costs[2] * 1.1 if number % 2 else None
        choice = choose_strategy(given, budget)
        for flip in choice.flips:
            seen.add(flip.quantity)

            def at(value, quantity=flip.quantity, given=given, budget=budget):
                if quantity == "budget_seconds":
                    return choose_strategy(given, value)
                changed = {quantity: value if quantity == "shift" else int(value)}
                if quantity == "labels_per_class" and given.groups_per_class:
                    changed["groups_per_class"] = min(given.groups_per_class, int(value))
                return choose_strategy(replace(given, **changed), budget)

            towards = np.sign(flip.now - flip.at) * step.get(flip.quantity, 1)
            then = at(flip.at)
            assert (then.strategy, then.rule.name) == (flip.strategy, flip.rule)
            assert at(flip.at + towards).strategy == choice.strategy != flip.strategy
    assert seen >= {
        "labels_per_class",
        "groups_per_class",
        "classes",
        "parameters",
        "shift",
        "budget_seconds",
    }


def test_what_would_not_flip_it_is_not_listed():
    for given in (situation(8), situation(30), situation(120, LARGE)):
        choice = choose_strategy(given)
        flips = {(f.quantity, f.at > f.now): f.at for f in choice.flips}
        others = ((n, replace(given, labels_per_class=n)) for n in range(1, 400))
        first = {n: next(rule.strategy for rule in RULES if rule.holds(one)) for n, one in others}
        other = [n for n, strategy in first.items() if strategy != choice.strategy]
        below, above = (
            max((n for n in other if n < given.labels_per_class), default=None),
            min((n for n in other if n > given.labels_per_class), default=None),
        )
        assert (
            flips.get(("labels_per_class", False)) == below and flips.get(("labels_per_class", True)) == above
        )


def test_full_fine_tuning_of_a_large_network_on_a_handful_is_refused():
    handful = situation(12, 11_176_512)
    with pytest.raises(Refusal, match=r"465,688.*12.*Take prototype, or insist"):
        check_strategy("full fine-tuning", handful)
    assert check_strategy("full fine-tuning", handful, insist=True).method == "LP-FT"
    assert (
        check_strategy("full fine-tuning", replace(handful, labels_per_class=200)).name == "full fine-tuning"
    )
    assert check_strategy("linear probe", handful).method == "target only"
    assert "full fine-tuning" in choose_strategy(handful).left_out
    assert "full fine-tuning" not in choose_strategy(handful, allow=["full fine-tuning"]).left_out
    with pytest.raises(Refusal, match="needs a network that works on images or texts"):
        check_strategy("LoRA", situation(100, modality="signal"))
    with pytest.raises(Refusal, match='Did you mean "LoRA"'):
        check_strategy("lora", handful)
    with pytest.raises(Refusal, match="no strategy"):
        choose_strategy(handful, allow=["everything"])
    assert all(not rule.holds(handful) or rule.strategy != "full fine-tuning" for rule in RULES)


def test_a_budget_is_kept_and_what_it_leaves_out_is_said():
    given = situation(60, 11_176_512, seconds=INVENTED)
    found = estimated_seconds(given)
    once = 120 * (0.02 + 0.005)
    assert found["prototype"] == pytest.approx(120 * 0.02) and found["linear probe"] == pytest.approx(once)
    assert found["partial fine-tuning"] == pytest.approx(once + 20 * 120 * 0.03)
    assert found["full fine-tuning"] == pytest.approx(once + 20 * 120 * 0.07)
    assert estimated_seconds(given, epochs=5)["LoRA"] == pytest.approx(once + 5 * 120 * 0.06)
    assert choose_strategy(given, 300).strategy == "partial fine-tuning"
    short = choose_strategy(given, 30)
    assert short.strategy == "linear probe" and short.passed_over == ("some labels",)
    assert "75.0 s" in short.left_out["partial fine-tuning"] and "over the budget of 30 s" in str(short)
    assert choose_strategy(given, 2.5).rule.name == "no time for more"
    assert choose_strategy(given, 30, epochs=3).strategy == "partial fine-tuning"
    rng = np.random.default_rng(2)
    for _ in range(60):
        given, budget = random_situation(rng), float(np.exp(rng.uniform(0, 6)))
        try:
            choice = choose_strategy(given, budget)
        except Refusal as refusal:
            assert "Nothing fits" in str(refusal) and min(estimated_seconds(given).values()) > budget
        else:
            assert choice.estimates[choice.strategy] <= budget


def test_budgets_that_cannot_be_kept_are_refused():
    with pytest.raises(Refusal, match=r"seconds=measure_steps\(backbone\)"):
        choose_strategy(situation(60), 300)
    with pytest.raises(Refusal, match="give a time above 0"):
        choose_strategy(situation(60, seconds=INVENTED), 0)
    with pytest.raises(Refusal, match=r"Nothing fits 1 s.*about 2\.4 s here.*smaller backbone"):
        choose_strategy(situation(60, seconds=INVENTED), 1)
    unmeasured = replace(INVENTED, lora=None)
    hurried = choose_strategy(situation(60, LARGE, seconds=unmeasured), 3600)
    assert hurried.left_out["LoRA"] == "How long it takes here was not measured."
    assert hurried.strategy == "partial fine-tuning"


def test_times_are_measured_in_the_real_loop():
    backbone = load_backbone("digits_convnet", weights="random")
    before = backbone.weights_digest
    measured = measure_steps(backbone, classes=3, images=30, repeats=1)
    assert backbone.weights_digest == before  # measuring leaves no trace
    assert all(
        seconds and seconds > 0
        for seconds in (measured.frozen, measured.partial, measured.lora, measured.full)
    )
    assert measured.epoch(50)["full"] == 50 * measured.full
    assert "lora" not in replace(measured, lora=None).epoch(50)
    with pytest.raises(Refusal, match="two images a class"):
        measure_steps(backbone, classes=5, images=6)


def test_the_situation_is_read_off_a_domain():
    labels = np.array([0] * 12 + [1] * 9 + [-1] * 5)
    groups = np.array([f"p{i // 3}" for i in range(26)])
    domain = Domain(
        "films", ArrayItems(np.zeros((26, 4))), labels, ("a", "b"), groups, None, np.arange(26).astype(str)
    )
    found = situation_of(domain, dimension=4)
    assert (found.labels_per_class, found.classes, found.groups_per_class) == (
        9,
        2,
        3,
    ) and found.independent == 3
    assert situation_of(domain, load_backbone("digits_convnet", weights="random")).dimension == 64
    with pytest.raises(Refusal, match="dimension=..."):
        situation_of(domain)
    with pytest.raises(Refusal, match="labels of 1 classes"):
        situation_of(domain.take(np.arange(12)), dimension=4)
    ratings = replace(domain, labels=np.linspace(0, 1, 26), classes=())
    with pytest.raises(Refusal, match="regression labels"):
        situation_of(ratings, dimension=4)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"labels_per_class": 0}, "labels_per_class = 0; give a whole number from 1"),
        ({"labels_per_class": 2.5}, "labels_per_class = 2.5"),
        ({"classes": 1}, "classes = 1; give a whole number from 2"),
        ({"groups_per_class": 31}, "more groups than labels"),
        ({"shift": 2.3}, "lies between 0 and 2"),
        ({"shift": float("nan")}, "lies between 0 and 2"),
        ({"parameters": -1}, "parameters = -1"),
    ],
)
def test_impossible_situations_are_refused(wrong, said):
    with pytest.raises(Refusal, match=said):
        replace(situation(30), **wrong)


def test_a_rule_about_an_unknown_quantity_is_refused():
    with pytest.raises(Refusal, match='Did you mean "parameters"'):
        Bound("parameter", below=3)
    assert not Bound("A-distance", below=2.0).holds(situation(5))  # not known: does not hold
    assert all(bound.quantity in QUANTITIES for rule in (*RULES, *REFUSED) for bound in rule.when)


def test_the_choice_is_plain_data_and_a_face():
    choice = choose_strategy(situation(60, 11_176_512, shift=0.4, groups_per_class=55, seconds=INVENTED), 30)
    again = json.loads(json.dumps(choice.to_dict()))
    assert again["strategy"] == "linear probe" and again["rule"] == "labels for a head"
    assert again["flips"] and set(again["left_out"]) >= {"full fine-tuning", "partial fine-tuning"}
    card, table = choice_card(choice), rules_table(choice)
    assert "Begin with linear probe" in card and "0.40 of 2" in card and "55 a class" in card
    assert all(rule.name in table for rule in RULES) and table.count("passed over") == 1
    assert rules_table().count('class="tl-declared"') == 0
