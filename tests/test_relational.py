"""Relational knowledge: graphs of classes, what borrows from them, and the controls that must fail."""

import gzip
from dataclasses import replace

import networkx
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import clone

from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.evidence.arms import Arm, Headline
from tljupyter.evidence.comparison import Preset, compare
from tljupyter.measures.metrics import balanced_accuracy
from tljupyter.refusals import Refusal
from tljupyter.transfer.pooling import TargetOnly
from tljupyter.transfer.relational.constraints import Constraints, repaired, violations
from tljupyter.transfer.relational.controls import DriftingClasses, labels_saved, relational_arms
from tljupyter.transfer.relational.graphs import ClassGraph, read_edges, read_obo
from tljupyter.transfer.relational.hierarchy import decide_nearest, hierarchical_scores
from tljupyter.transfer.relational.prototypes import GraphHead, GraphPrototypes, solve_graph_head
from tljupyter.transfer.relational.rules import (
    Rule,
    RuleTransfer,
    learn_rules,
    map_rules,
    propose_mapping,
    read_rules,
    write_rules,
)

WORLD = DriftingClasses(seed=1)
TWO_RULES = (Rule("b0.0", ("column 0",), 1.0), Rule("b1.0", ("column 1", "column 2"), 2.0))
METHODS = {
    "graph prototypes": lambda graph=WORLD.graph: GraphPrototypes(graph=graph),
    "graph head": lambda graph=WORLD.graph: GraphHead(graph=graph),
    "rule transfer": lambda graph=None: RuleTransfer(rules=TWO_RULES),
}


def table(rows, labels, classes, name="table", groups=None) -> Domain:
    rows, labels = np.asarray(rows, dtype=float), np.asarray(labels)
    names = np.array([f"row {i}" for i in range(len(rows))])
    return Domain(name, ArrayItems(rows), labels, tuple(classes), groups, None, names, "table")


def proper(given, domain) -> None:
    assert given.shape == (len(domain), len(domain.classes)) and np.isfinite(given).all()
    assert (given >= 0).all()
    np.testing.assert_allclose(given.sum(1), 1, atol=1e-9)


# Graphs


def test_a_circle_is_refused_with_its_members():
    with pytest.raises(Refusal, match=r"a is a b|b is a a"):
        ClassGraph.from_edges([("a", "b"), ("b", "a"), ("c", "a")])
    with pytest.raises(Refusal, match="circle|kind of itself"):
        ClassGraph.from_edges(networkx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")]))


def test_names_are_found_by_identifier_name_and_synonym_and_missing_ones_are_named():
    graph = ClassGraph.from_edges(
        [("D:1", "D:0")], {"D:1": "Eczema", "D:0": "skin disease"}, {"D:1": ("atopic dermatitis",)}
    )
    assert graph.match(["d:1", "ECZEMA", "Atopic_Dermatitis"]).nodes == ("D:1",) * 3
    matched = graph.match(["eczma", "gout"])
    assert matched.nodes == (None, None) and "Eczema" in matched.notes[0] and "gout" in matched.notes[1]
    with pytest.raises(Refusal, match="eczma"):
        graph.match(["eczma"], missing="refuse")
    assert graph.with_synonyms({"eczma": "eczema"}).find("eczma") == "D:1"


def test_wrong_relations_are_refused():
    with pytest.raises(Refusal, match="co-occurs"):
        ClassGraph.from_edges([("a", "b", "co-occur")])
    with pytest.raises(Refusal, match="weight"):
        ClassGraph.from_edges([("a", "b", "causes", -1.0)])


def test_distances_ancestors_and_likeness_of_a_known_tree():
    graph, classes = WORLD.graph, WORLD.classes
    apart, like = graph.distances(classes), graph.similarity(classes)
    assert apart[0, 1] == 2 and apart[0, 3] == 4 and (np.diag(apart) == 0).all()
    assert like[0, 1] == pytest.approx(0.5) and like[0, 3] == 0
    assert graph.common_ancestor("b0.0", "b0.2") == "b0" and graph.depth("b0.0") == 2
    assert graph.information("b0.0") > graph.information("b0") > graph.information("root") == 0
    for kernel in ("ancestors", "laplacian", "diffusion"):
        found = graph.similarity(classes, kernel)
        assert np.linalg.eigvalsh(found).min() > -1e-9 and np.allclose(np.diag(found), 1)


def test_edges_without_a_tree_and_unconnected_classes():
    graph = ClassGraph.from_edges([("a", "b", "co-occurs", 2.0), ("b", "c", "causes", 0.5)], nodes=["d"])
    apart = graph.distances(["a", "b", "c", "d", "unknown"])
    assert apart[0, 1] == 0.5 and apart[0, 2] == 2.5 and apart[0, 3] == apart[0, 4] == 3.5
    like = graph.similarity(["a", "b", "c", "d", "unknown"])
    assert like[0, 1] > like[0, 2] > 0 == like[0, 3] == like[0, 4]


@pytest.mark.parametrize("seed", range(3))
def test_controls_keep_the_shape_and_change_the_content(seed):
    graph, classes = WORLD.graph, WORLD.classes
    like, shuffled = graph.similarity(classes), graph.shuffled(seed, classes)
    assert not np.allclose(shuffled.similarity(classes), like)
    assert np.allclose(np.sort(shuffled.similarity(classes), axis=None), np.sort(like, axis=None))
    assert shuffled.edges == graph.shuffled(seed, classes).edges
    rewired = graph.rewired(seed)
    for node in graph.nodes:
        assert rewired.taxonomy.in_degree(node) == graph.taxonomy.in_degree(node)
        assert rewired.taxonomy.out_degree(node) == graph.taxonomy.out_degree(node)
    assert rewired.edges != graph.edges


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_of_another_domain_says_something_and_nothing_of_these_classes(seed):
    classes, other = WORLD.classes, DriftingClasses(branches=5, leaves=4).graph
    strange = ClassGraph.from_edges([(f"x{e.first}", f"x{e.second}") for e in other.edges])
    lent = strange.lent_to(classes, seed)
    like = lent.similarity(classes)
    assert not lent.match(classes).notes and (like > 0).sum() > len(classes)
    assert not np.allclose(like, WORLD.graph.similarity(classes))
    assert lent.edges == strange.lent_to(classes, seed).edges != strange.lent_to(classes, seed + 7).edges


def test_a_graph_that_is_no_control_is_refused():
    with pytest.raises(Refusal, match="knows"):
        WORLD.graph.lent_to(WORLD.classes, 0)
    with pytest.raises(Refusal, match="Take a larger one"):
        ClassGraph.from_edges([("a", "b"), ("c", "b")]).lent_to(WORLD.classes, 0)
    with pytest.raises(Refusal, match="no control"):
        ClassGraph.from_edges([(name, "root") for name in "abcd"]).lent_to("wxyz", 0)
    beside = ClassGraph.from_edges([("a", "b", "co-occurs"), ("b", "c", "co-occurs"), ("d", "e", "causes")])
    assert (beside.lent_to("wxyz", 0).similarity("wxyz") > 0).sum() > 4
    with pytest.raises(Refusal, match="knows"):
        relational_arms(lambda graph, seed: None, WORLD.graph, WORLD.classes, WORLD.graph)


def test_a_star_cannot_be_shuffled():
    star = ClassGraph.from_edges([(name, "root") for name in "abcd"])
    with pytest.raises(Refusal, match="nothing that shuffling"):
        star.shuffled(0, "abcd")


def test_tables_are_read_and_wrong_rows_named(tmp_path):
    path = tmp_path / "edges.csv"
    path.write_text("child,relation,parent\nx,is_a,y\nu,co_occurs,\n")
    with pytest.raises(Refusal, match="row 3"):
        read_edges(path)
    path.write_text("child;parent;weight\nx;y;2\n")
    assert read_edges(path).edges == (("x", "y", "is-a", 2.0),)
    path.write_text("from,to\nx,y\n")
    with pytest.raises(Refusal, match="column"):
        read_edges(path)
    with pytest.raises(Refusal, match="no such file"):
        read_edges(tmp_path / "absent.csv")
    obo = tmp_path / "small.obo.gz"
    obo.write_bytes(
        gzip.compress(
            b'format-version: 1.2\n\n[Term]\nid: X:1\nname: one\nsynonym: "first \\"1\\"" EXACT []\n\n[Term]\nid: X:2\n'
            b'name: two\nis_a: X:1 {source="x"} ! one\nalt_id: X:9\n\n[Typedef]\nid: part_of\n'
        )
    )
    graph = read_obo(obo)
    assert graph.nodes == ("X:1", "X:2") and graph.find('FIRST "1"') == "X:1" and graph.find("x:9") == "X:2"
    assert graph.ancestors("two") == {"X:1", "X:2"}


# Methods


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cases", [1, 2, 4])
def test_contract(name, cases):
    few, test = WORLD.domain(cases, 0), WORLD.domain(5, 1)  # 30 features: fewer rows than these at 1 and 2
    method = METHODS[name]()
    given = method.fit(few).predict_proba(test)
    proper(given, test)
    np.testing.assert_array_equal(given, clone(method).fit(few).predict_proba(test))
    assert all(isinstance(note, str) for note in method.notes_)
    assert method.out_of_fold_ is None or method.out_of_fold_.shape == (len(few), 12)
    written = skops.io.dumps(method)
    wanted = skops.io.get_untrusted_types(data=written)
    assert all(each.startswith("tljupyter.") for each in wanted)
    again = skops.io.loads(written, trusted=wanted)
    np.testing.assert_array_equal(given, again.predict_proba(test))


@pytest.mark.parametrize("name", METHODS)
def test_degenerate_targets(name):
    few, test = WORLD.domain(2, 0), WORLD.domain(3, 1)
    lacking = few.take(np.flatnonzero(few.labels != 5))
    proper(METHODS[name]().fit(lacking).predict_proba(test), test)
    one = few.take(np.flatnonzero(few.labels == 3))
    proper(given := METHODS[name]().fit(one).predict_proba(test), test)
    if name != "rule transfer":  # a rule for a class never seen may still fire
        assert (given.argmax(1) == 3).all()
    rows = np.stack([few.items[i] for i in range(len(few))])
    rows[:, 4] = 7.0
    constant = replace(few, items=ArrayItems(rows))
    proper(METHODS[name]().fit(constant).predict_proba(test), test)
    flat = replace(few, items=ArrayItems(np.ones_like(rows)))
    proper(METHODS[name]().fit(flat).predict_proba(test), test)
    grouped = replace(few, groups=np.array([f"p{i // 2}" for i in range(len(few))]))
    proper(METHODS[name]().fit(grouped).predict_proba(test), test)


@pytest.mark.parametrize("make", [GraphPrototypes, GraphHead])
def test_strength_zero_is_no_graph(make):
    few, test = WORLD.domain(3, 0), WORLD.domain(5, 1)
    none = make().fit(few).predict_proba(test)
    np.testing.assert_array_equal(none, make(graph=WORLD.graph, strength=0.0).fit(few).predict_proba(test))
    with pytest.raises(Refusal, match="strength"):
        make(graph=WORLD.graph, strength=-1.0).fit(few)
    if make is GraphHead:
        np.testing.assert_array_equal(none, TargetOnly().fit(few).predict_proba(test))


@pytest.mark.parametrize("make", [GraphPrototypes, GraphHead])
def test_classes_missing_from_the_graph_are_noted_or_refused(make):
    few = WORLD.domain(2, 0)
    renamed = replace(few, classes=("mystery", *few.classes[1:]))
    method = make(graph=WORLD.graph).fit(renamed)
    assert any("mystery" in note for note in method.notes_)
    with pytest.raises(Refusal, match="mystery"):
        make(graph=WORLD.graph, missing="refuse").fit(renamed)
    strangers = replace(few, classes=tuple(f"stranger {i}" for i in range(12)))
    alone = make(graph=WORLD.graph).fit(strangers)
    np.testing.assert_array_equal(alone.predict_proba(few), make().fit(few).predict_proba(few))


def test_the_posterior_is_that_of_a_gaussian_process():
    "Against scikit-learn's on the class means, with the same kernel and noise, the centre taken out by hand."
    few = WORLD.domain([2, 3] + [9] * 10, 0)
    method = GraphPrototypes(graph=WORLD.graph, strength=1.0).fit(few)
    rows = np.stack([few.items[i] for i in range(len(few))])
    counts = np.bincount(few.labels)
    means = np.stack([rows[few.labels == c].mean(0) for c in range(12)])
    like = WORLD.graph.similarity(WORLD.classes)

    def weights(variance):
        inverse = np.linalg.inv(variance * like + np.diag(1 / counts))
        centre = inverse.sum(0) / inverse.sum()
        return centre + variance * like @ inverse @ (np.eye(12) - np.outer(np.ones(12), centre))

    errors = [np.abs(weights(v) - method.weights_).max() for v in np.logspace(-3, 3, 25)]
    assert min(errors) < 1e-9
    np.testing.assert_allclose(method.prototypes_, method.weights_ @ means)


def test_the_graph_head_is_solved_exactly():
    "At its optimum no small step helps; with 3 classes and strength 0 it is scikit-learn's."
    few = WORLD.domain(4, 0).take(np.arange(12))
    rows = np.stack([few.items[i] for i in range(12)])
    like = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.0]])
    plain, drawn = (solve_graph_head(rows, few.labels, like, 0.1, s) for s in (0.0, 1e-12))
    np.testing.assert_allclose(plain.predict_proba(rows), drawn.predict_proba(rows), atol=1e-3)
    far = solve_graph_head(rows, few.labels, like, 0.1, 100.0)
    gap = np.linalg.norm(far.weight[0] - far.weight[1]) / np.linalg.norm(far.weight[0] - far.weight[2])
    assert gap < 0.2


def test_a_class_never_seen_is_found_through_its_relatives():
    few, test = WORLD.domain(30, 0), WORLD.domain(50, 1)
    unseen = few.take(np.flatnonzero(few.labels != 4))
    method = GraphPrototypes(graph=WORLD.graph).fit(unseen)
    said = method.predict(test.take(np.flatnonzero(test.labels == 4)))
    assert (said // 3 == 1).mean() > 0.7 and (said == 4).mean() > 1 / 12
    assert any("relatives alone" in note for note in method.notes_)
    assert (GraphPrototypes().fit(unseen).predict(test) != 4).all()


def test_relatives_in_a_source_help_and_shuffled_ones_do_not():
    ours = [name for name in WORLD.classes if name.endswith(".0")]
    theirs = [name for name in WORLD.classes if name not in ours]
    few, test = WORLD.domain(1, 3, ours), WORLD.domain(60, 1, ours)
    source = WORLD.domain(40, 4, theirs, shift=3.0)
    fits = [
        GraphPrototypes(graph=g).fit(few, source)
        for g in (None, WORLD.graph, WORLD.graph.shuffled(1, WORLD.classes))
    ]
    none, real, shuffled = (fit.score(test, test.labels) for fit in fits)
    assert real > none + 0.1 and real > shuffled + 0.1
    assert any(name.endswith("(source)") for name in fits[1].cells_)


def test_borrowing_helps_from_one_to_three_cases_and_graphs_that_say_nothing_do_not():
    gains, animals = [], ClassGraph.from_edges([(f"animal {i}", f"kind {i // 4}") for i in range(20)]
        + [(f"kind {k}", "all animals") for k in range(5)])  # fmt: skip
    for seed in range(8):
        world = DriftingClasses(seed=seed)
        few, test = world.domain(1 + seed % 3, 0), world.domain(25, 1)
        controls = world.graph.shuffled(seed, world.classes), animals.lent_to(world.classes, seed)
        none, *others = (
            GraphPrototypes(graph=g).fit(few).score(test, test.labels) for g in (None, world.graph, *controls)
        )
        gains.append(np.array(others) - none)
    real, shuffled, foreign = np.mean(gains, axis=0)
    assert real > 0.01 and real > max(shuffled, foreign) + 0.01 and max(abs(shuffled), abs(foreign)) < 0.015


def test_where_branches_do_not_drift_nothing_is_gained():
    gains = []
    for seed in range(5):
        world = DriftingClasses(seed=seed, of_branch=0.0, of_leaf=1.0)
        few, test = world.domain(3, 0), world.domain(25, 1)
        none, real = (GraphPrototypes(graph=g).fit(few).score(test, test.labels) for g in (None, world.graph))
        gains.append(real - none)
    assert abs(np.mean(gains)) < 0.02


@pytest.mark.slow
def test_arms_go_through_a_comparison():
    world, preset = DriftingClasses(seed=2), Preset("tiny", (2,), 2, 2, 0, 1)
    pool, held_out = world.domain(8, 0, split="train"), world.domain(10, 1, split="test")
    rows = np.stack([d.items[i] for d in (pool, held_out) for i in range(len(d))])
    domain = Domain(
        "both", ArrayItems(rows), np.concatenate([pool.labels, held_out.labels]), pool.classes, None,
        np.concatenate([pool.splits, held_out.splits]), np.concatenate([pool.names, held_out.names]), "table",
    )  # fmt: skip
    made = relational_arms(
        lambda graph, seed: GraphPrototypes(graph=graph, random_state=seed),
        world.graph,
        domain.classes,
        ClassGraph.from_edges(
            [(f"animal {i}", f"kind {i // 4}") for i in range(12)] + [("kind 0", "kind 1")]
        ),
    )
    arms = [Arm(name, make) for name, make in made.items()]
    headline = Headline(labels_per_class=2, arm="graph", baseline="shuffled graph")
    found = compare(domain, arms, preset, headline)
    said_nothing = {"shuffled graph", "rewired graph", "graph of another domain"}
    assert set(found.predictions["arm"]) == {"no relation", "graph"} | said_nothing
    assert found.results()["headline"]


# Labels saved


def test_labels_saved_says_when_it_is_not_reached():
    without = np.tile([0.5, 0.6, 0.7], (5, 1))
    assert labels_saved((1, 2, 4), without, without + 0.1, 1).equal_at == pytest.approx(2)
    assert labels_saved((1, 2, 4), without, without + 0.1, 4).equal_at is None
    assert "not reached" in labels_saved((1, 2, 4), without, without + 0.1, 4).said
    assert labels_saved((1, 2, 4), without, without - 0.1, 2).equal_at == pytest.approx(1)
    with pytest.raises(Refusal):
        labels_saved((1, 2), without, without, 1)


# Hierarchy


def test_decisions_and_scores_by_the_tree():
    graph, classes = WORLD.graph, WORLD.classes
    apart = graph.distances(classes)
    probabilities = np.zeros((1, 12))
    probabilities[0, [0, 1, 2, 7]] = 0.22, 0.21, 0.2, 0.37
    assert probabilities.argmax() == 7 and decide_nearest(probabilities, apart)[0] == 0
    assert decide_nearest(np.eye(12), apart).tolist() == list(range(12))
    near = hierarchical_scores([0, 4], [1, 4], classes, graph)
    assert near.distance_of_mistake == 2 and near.distance == 1 and near.mistakes == 1
    assert near.precision == near.recall == near.f_score == 0.75
    assert hierarchical_scores([0], [3], classes, graph).f_score == 0
    with pytest.raises(Refusal):
        decide_nearest(probabilities, apart[:3])
    with pytest.raises(Refusal):
        hierarchical_scores([0, -1], [0, 0], classes, graph)


# Constraints


def test_repaired_predictions_break_no_rule_and_change_least():
    findings = tuple("abcd")
    rules = Constraints.of([("a", "b"), ("b", "c")], [("c", "d")])
    values = np.random.default_rng(0).random((50, 4))
    mended = repaired(values, findings, rules)
    assert violations(mended, findings, rules, tolerance=1e-5) == () and ((mended >= 0) & (mended <= 1)).all()
    moved = ((mended - values) ** 2).sum(1)
    other = values.copy()
    other[:, 1] = np.minimum(other[:, 1], other[:, 2])
    other[:, 0] = np.minimum(other[:, 0], other[:, 1])
    other[:, 3] = np.minimum(other[:, 3], 1 - other[:, 2])
    assert violations(other, findings, rules) == () and (moved <= ((other - values) ** 2).sum(1) + 1e-6).all()
    np.testing.assert_allclose(repaired(mended, findings, rules), mended, atol=1e-5)


def test_every_violation_is_listed_and_contradictions_are_refused():
    rules = Constraints.of([("a", "b")], [("b", "c")])
    found = violations(np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0]]), "abc", rules, names="xyz")
    assert [(v.case, v.rule) for v in found] == [("x", '"a" implies "b"'), ("y", "at most one of b, c")]
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    assert repaired(labels, "abc", rules, how="raise parents").tolist() == [[1, 1, 0], [0, 1, 0]]
    with pytest.raises(Refusal, match="exclude"):
        repaired(np.array([[1, 0, 1]]), "abc", rules, how="raise parents")
    with pytest.raises(Refusal, match="never hold"):
        Constraints.of([("a", "b"), ("a", "c")], [("b", "c")])
    with pytest.raises(Refusal, match="itself"):
        Constraints.of([("a", "b"), ("b", "a")])
    with pytest.raises(Refusal, match="no column"):
        violations(labels, "abx", rules)
    with pytest.raises(Refusal, match="Row 0"):
        violations(np.array([[np.nan, 0, 0]]), "abc", rules)


# Rules


@pytest.mark.parametrize("suffix", ["txt", "yaml"])
def test_rules_are_written_and_read(tmp_path, suffix):
    rules = (Rule("ill", ("fever", "stiff neck"), 1.25, 7, 9), Rule("well", ("appetite",), -0.5))
    path = write_rules(tmp_path / f"rules.{suffix}", rules)
    assert read_rules(path) == rules
    path.write_text("fever ill" if suffix == "txt" else "- if: [fever]\n  weight: 1\n")
    with pytest.raises(Refusal, match="line 1|rule 1"):
        read_rules(path)


def test_rules_are_learned_mapped_and_revised():
    rng = np.random.default_rng(0)
    holds = rng.random((200, 6)) < 0.4
    ill = (holds[:, 1] & holds[:, 3]).astype(int)
    rules = learn_rules(holds, list("abcdef"), ill, ("well", "ill"))
    best = next(rule for rule in rules if rule.head == "ill")
    assert best.body == ("b", "d") and best.right == best.covered and np.isfinite(best.weight)
    assert learn_rules(holds, list("abcdef"), np.zeros(200, dtype=int), ("well", "ill")) == ()
    proposals = {
        p.name: p
        for p in propose_mapping(
            [Rule("ill", ("Stiff-Neck", "hypertension", "zz"), 1.0)], ("stiff neck", "hypotension")
        )
    }
    assert (
        proposals["Stiff-Neck"].sure
        and not proposals["hypertension"].sure
        and proposals["zz"].proposed is None
    )
    kept, notes = map_rules(rules, {"b": "B", "d": "D"})
    assert best.head in {r.head for r in kept} and len(kept) + len(notes) == len(rules)
    source = table(holds, ill, ("well", "ill"))
    few = source.take(few_shot_draw(ill, 2, 0).train)
    method = RuleTransfer(predicates=tuple("abcdef"), trust=10.0).fit(few, source)
    assert method.score(source, ill) > 0.8 and len(method.rules_) == len(method.prior_weights_)
    with pytest.raises(Refusal, match="no column"):
        RuleTransfer(rules=kept).fit(few)
    with pytest.raises(Refusal, match="rules"):
        RuleTransfer().fit(few)


# Real data


def disease_ontology(data_dir) -> ClassGraph:
    folder = data_dir / "knowledge_disease_graph"
    return read_edges(folder / "do_is_a.csv", folder / "do_nodes.csv.gz")


@pytest.mark.slow
def test_the_disease_ontology_is_read_whole(data_dir):
    graph = disease_ontology(data_dir)
    assert len(graph.nodes) >= 6500 and graph.name(graph.find("DOID:4")) == "disease"
    assert graph.common_ancestor("pityriasis rosea", "pityriasis rubra pilaris") == graph.find("psoriasis")
    cancers = graph.around([n for n in graph.nodes if graph.find("cancer") in graph.ancestors(n)])
    lent = cancers.lent_to(DERMATOSES, 0)  # near each other among thousands, so that it says something
    assert ((lent.similarity(DERMATOSES) > 0).sum(1) > 1).any()
    rare = read_obo(data_dir / "knowledge_disease_graph" / "DO_rare_slim.obo.gz")
    assert len(rare.nodes) > 3000 and rare.find("DILE") == "DOID:0040093"


DERMATOSES = (
    "psoriasis",
    "seborrheic dermatitis",
    "lichen planus",
    "pityriasis rosea",
    "chronic dermatitis",
    "pityriasis rubra pilaris",
)


@pytest.mark.slow
def test_dermatology_real_graph_against_shuffled(data_dir):
    "Six diseases told by 12 clinical signs: the ontology neither helps nor harms, and neither does its shuffled twin."
    frame = pd.read_csv(data_dir / "bio_dermatology" / "dermatology.csv")
    signs = frame.iloc[:, [*range(11), 33]].to_numpy(dtype=float)
    domain = table(signs, frame["class"].to_numpy() - 1, DERMATOSES, "dermatology")
    graph = disease_ontology(data_dir).with_synonyms({"chronic dermatitis": "dermatitis"}).around(DERMATOSES)
    assert not graph.match(DERMATOSES).notes
    gains = []
    for draw in range(8):
        chosen = few_shot_draw(domain.labels, 2, draw).train
        few, test = domain.take(chosen), domain.take(np.setdiff1d(np.arange(len(domain)), chosen))
        graphs = None, graph, graph.shuffled(draw, DERMATOSES)
        scores = [
            balanced_accuracy(test.labels, GraphPrototypes(graph=g).fit(few).predict(test)) for g in graphs
        ]
        gains.append(np.array(scores[1:]) - scores[0])
    assert scores[0] > 0.5 and (np.abs(np.mean(gains, axis=0)) < 0.02).all()


def described_diseases(data_dir, graph, fewest=4) -> Domain:
    "Diseases by their symptoms; the class is the most special category with at least `fewest` diseases left in it."
    pairs = pd.read_csv(data_dir / "knowledge_disease_graph" / "disease_symptom_hsdn.tsv.gz", sep="\t")
    counts = pairs.pivot_table(
        index="doid_code", columns="symptom_name", values="tfidf_score", aggfunc="max"
    ).fillna(0)
    rows = np.log1p(counts.to_numpy())
    above = [graph.ancestors(node) for node in counts.index]
    special = {node: graph.information(node) for node in frozenset().union(*above)}
    open_to = {node for node in special if sum(node in own for own in above) >= fewest}
    while True:
        chosen = [max(own & open_to, key=lambda node: (special[node], node)) for own in above]
        sizes = {node: chosen.count(node) for node in chosen}
        smallest = min(sizes, key=lambda node: (sizes[node], node))
        if sizes[smallest] >= fewest:
            break
        open_to.discard(smallest)
    classes = sorted(sizes)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return table(rows, [classes.index(node) for node in chosen], classes, "diseases")


@pytest.mark.slow
def test_a_hidden_category_of_diseases_is_ranked_by_the_real_graph_and_not_by_a_shuffled_one(data_dir):
    "Nobody has seen the category; its place among 20, by the ontology and by its shuffled twins of equal strength."
    graph = disease_ontology(data_dir)
    domain = described_diseases(data_dir, graph)
    near, categories = graph.around(domain.classes), len(domain.classes)
    related = np.flatnonzero((graph.similarity(domain.classes) > 0).sum(1) > 1)

    def place(graph):
        "Mean place of the hidden category among all."
        found = []
        for code in related:
            method = GraphPrototypes(graph=graph, strength=0.95).fit(
                domain.take(np.flatnonzero(domain.labels != code))
            )
            given = method.predict_proba(domain.take(np.flatnonzero(domain.labels == code)))
            found += ((given > given[:, [code]]).sum(1) + 1).tolist()
        return np.mean(found)

    real, shuffled = place(near), [place(near.shuffled(seed, domain.classes)) for seed in range(2)]
    assert categories == 20 and real < 4.5 and min(shuffled) > real + 2
    few = domain.take(np.flatnonzero(domain.labels != related[0]))
    chosen = [GraphPrototypes(graph=g).fit(few).strength_ for g in (near, near.shuffled(0, domain.classes))]
    assert chosen[0] > 0.5 and chosen[1] == 0  # by marginal likelihood
