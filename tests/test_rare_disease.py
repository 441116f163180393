"""The report on diseases related by an ontology: every number again from the predictions, distances by networkx."""

import json
import re

import networkx
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score
from test_templates import made, recomputed, report

from tljupyter.measures.hierarchy import (
    hierarchical_metrics,
    mean_distance,
    mean_of_mistakes,
    resampled_mistakes,
)
from tljupyter.measures.intervals import HeldOut
from tljupyter.refusals import Refusal
from tljupyter.transfer.relational.controls import DriftingClasses
from tljupyter.transfer.relational.hierarchy import hierarchical_scores

METHODS = ("graph prototypes", "graph head")
ARMS = {"majority", "target only", *METHODS, *(f"{name}, relations shuffled" for name in METHODS)}


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_of_two_is_a_case_twice(seed):
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(4, size=(2, 60))
    table = rng.uniform(1, 5, (4, 4)) * (1 - np.eye(4))
    often = rng.integers(0, 4, 60)
    twice = np.repeat(np.arange(60), often)
    for score in (mean_distance, mean_of_mistakes):
        block = score(labels, said, table, np.stack([often, np.ones(60)]))
        np.testing.assert_allclose(
            block, [score(labels[twice], said[twice], table), score(labels, said, table)]
        )
    wrong = labels != said
    assert mean_distance(labels, said, table) == pytest.approx(
        mean_of_mistakes(labels, said, table) * wrong.mean()
    )


def test_the_same_numbers_as_those_of_the_class_graph():
    world, rng = DriftingClasses(), np.random.default_rng(0)
    labels, said = rng.integers(12, size=(2, 200))
    known = hierarchical_scores(labels, said, world.classes, world.graph)
    apart = world.graph.distances(world.classes)
    assert mean_distance(labels, said, apart) == pytest.approx(known.distance)
    assert mean_of_mistakes(labels, said, apart) == pytest.approx(known.distance_of_mistake)


def test_mistakes_are_the_evidence_on_mistakes():
    labels = np.repeat([0, 1, 2], 50)
    said = np.tile(labels, (3, 1))
    said[0, :4], said[1, [60, 70]] = 1, 2  # the third draw makes no mistake
    apart = 2.0 * (1 - np.eye(3)) + np.array([[0, 0, 2], [0, 0, 0], [2, 0, 0]])
    held_out = HeldOut(labels, np.arange(150))
    _, of_mistake, in_branch = hierarchical_metrics(apart, apart < 4)
    draws, found = resampled_mistakes(of_mistake, held_out, said, held_out.weights(50))
    assert draws.tolist() == [0, 1] and found.units == 3 and found.step == pytest.approx(4 / 3)
    np.testing.assert_allclose(found.values, 2)
    draws, found = resampled_mistakes(in_branch, held_out, said[2:], held_out.weights(50))
    assert len(draws) == 0 and found.values.shape == (0,)


@pytest.mark.parametrize(
    ("labels", "said", "table"), [([0, 1], [0], np.zeros((2, 2))), ([0, 2], [0, 1], np.zeros((2, 2)))]
)
def test_tables_that_do_not_fit_are_refused(labels, said, table):
    with pytest.raises(Refusal):
        mean_distance(labels, said, table)


def apart_by_networkx(table, names, classes, called):
    "Steps between diseases in the whole ontology, read without the kit; and whether a class holds two but not all."
    read = pd.read_csv(table)
    up = networkx.DiGraph(zip(read["child"], read["parent"], strict=True))
    known = (
        pd.read_csv(names).set_index("name")["id"].to_dict()
        if names is not None
        else {node: node for node in up}
    )
    places = [known[called.get(name, name)] for name in classes]
    around = up.subgraph({node for place in places for node in networkx.descendants(up, place) | {place}})
    ways = dict(networkx.all_pairs_shortest_path_length(around.to_undirected()))
    above = [networkx.descendants(up, place) | {place} for place in places]
    told = set.union(*above) - set.intersection(*above)
    near = [[bool(one & other & told) for other in above] for one in above]
    return np.array([[ways[one][other] for other in places] for one in places]), np.array(near)


def check(folder, table, names=None, called=()):
    "All files of a run against a second computation; its results and what was found against shuffled relations."
    results, predictions = made(folder)
    assert recomputed(results, predictions) == results and {row["arm"] for row in results["arms"]} == ARMS
    assert results["headline"]["baseline"] == "target only"
    test = predictions[predictions["part"] == "test"]
    wide = {
        key: rows.sort_values(["draw", "case"]) for key, rows in test.groupby(["arm", "labels_per_class"])
    }

    def balanced(arm, k):
        return [
            balanced_accuracy_score(rows["label"], rows["predicted"])
            for _, rows in wide[arm, k].groupby("draw")
        ]

    over = json.loads((folder / "relations.json").read_text())
    assert len(over["comparisons"]) == 2 * test["labels_per_class"].nunique()
    assert [row["exploratory"] for row in over["comparisons"]].count(False) == 1
    for row in over["comparisons"]:
        arm, k = row["arm"], row["labels_per_class"]
        gains = np.subtract(balanced(arm, k), balanced(f"{arm}, relations shuffled", k))
        np.testing.assert_allclose(row["values"], gains, atol=1e-12)
        assert row["gain"] == pytest.approx(gains.mean()) and row["low"] <= row["gain"] <= row["high"]
        assert row["p_holm"] >= row["p_value"]

    hierarchy = json.loads((folder / "hierarchy.json").read_text())
    apart, near = apart_by_networkx(table, names, results["classes"], dict(called))
    np.testing.assert_array_equal(hierarchy["distances"], apart)
    np.testing.assert_array_equal(hierarchy["same_branch"], near)
    means = {}
    for row in hierarchy["arms"]:
        arm, k = row["arm"], row["labels_per_class"]
        rows = wide[arm.removesuffix(", least far"), k]
        if arm.endswith(", least far"):
            likely = rows[[f"p_{code}" for code in range(len(apart))]].to_numpy()
            rows = rows.assign(predicted=(likely @ apart).argmin(1))
        rows = rows.assign(
            apart=apart[rows["label"], rows["predicted"]], near=near[rows["label"], rows["predicted"]]
        )
        if row["metric"] != "mean_distance":
            rows = rows[rows["label"] != rows["predicted"]]
        by_draw = rows.groupby("draw")[
            "near" if row["metric"] == "share_of_near_mistakes" else "apart"
        ].mean()
        np.testing.assert_allclose(row["values"], by_draw, rtol=1e-9)
        assert row["mean"] == pytest.approx(by_draw.mean()) and row["low"] <= row["mean"] <= row["high"]
        means[row["metric"], arm, k] = row["mean"]
    for row in hierarchy["gains"]:
        metric, k = row["metric"], row["labels_per_class"]
        gain = means[metric, row["arm"], k] - means[metric, "target only", k]
        gain = gain if metric == "share_of_near_mistakes" else -gain
        if metric == "mean_distance":  # the others leave out draws without a mistake, pair by pair
            assert row["gain"] == pytest.approx(gain)
        assert row["low"] <= row["gain"] <= row["high"] and row["p_holm"] >= row["p_value"]

    told = json.loads((folder / "diseases.json").read_text())
    for code, row in enumerate(told["diseases"]):
        for arm, share in row["found"].items():
            mine = wide[arm, told["labels_per_class"]].query("label == @code")
            assert share == pytest.approx((mine["predicted"] == code).mean())
        assert row["gain"] == pytest.approx(row["found"][told["arm"]] - row["found"]["target only"])
        assert row["relatives"] == [
            results["classes"][other] for other in np.flatnonzero(near[code]) if other != code
        ]
    return results, over


CALLED = {
    "1": "psoriasis",
    "2": "seborrheic dermatitis",
    "3": "lichen planus",
    "4": "pityriasis rosea",
    "5": "dermatitis",
    "6": "pityriasis rubra pilaris",
}
SIGNS = ",".join([*(f"a{number}" for number in range(1, 12)), "age"])


def skin(data_dir, **changed):
    knowledge = data_dir / "knowledge_disease_graph"
    given = {
        "cases": data_dir / "bio_dermatology" / "dermatology.csv",
        "edges": knowledge / "do_is_a.csv",
        "nodes": knowledge / "do_nodes.csv.gz",
        "names": ",".join(f"{code}={name}" for code, name in CALLED.items()),
        "use": SIGNS,
    }
    return [f"{name}={value}" for name, value in {**given, **changed}.items()]


@pytest.mark.slow
def test_skin_diseases_of_the_disease_ontology(tmp_path, data_dir):
    code, _, errors = report("rare_disease", tmp_path / "run", *skin(data_dir))
    assert code == 0, errors
    knowledge = data_dir / "knowledge_disease_graph"
    results, over = check(tmp_path / "run", knowledge / "do_is_a.csv", knowledge / "do_nodes.csv.gz")
    assert results["classes"] == list(CALLED.values())
    _, predictions = made(tmp_path / "run")
    raw = pd.read_csv(data_dir / "bio_dermatology" / "dermatology.csv")
    lines = predictions["case"].str.removeprefix("line ").astype(int)
    np.testing.assert_array_equal(raw.loc[lines - 2, "class"].to_numpy() - 1, predictions["label"].to_numpy())
    (own,) = (row for row in over["comparisons"] if not row["exploratory"])
    assert abs(own["gain"]) < 0.05, "what is known of this set: shuffled relations do as well within points"
    page = (tmp_path / "run" / "report.html").read_text()
    sections = (
        'class="verdict"',
        "Is it what the relations say?",
        "Which diseases are related?",
        "How far off is a wrong answer?",
        "Disease by disease",
        "How sure?",
        "What next?",
        "How was this made?",
    )
    places = [page.index(words) for words in sections]
    assert places == sorted(places)
    assert "pityriasis rosea is below psoriasis" in page and "lichen planus has no relative" in page
    assert "What the relations say is what helps: " not in page


def ward(folder, true=True, **world):
    "Cases of diseases that drift along the branches of a tree, and the tree; or one with the diseases shuffled."
    world = DriftingClasses(**{"branches": 6, "features": 100, "of_branch": 0.6, "of_leaf": 0.2} | world)
    cases = world.domain(50, seed=1)
    rows = pd.DataFrame([cases.items[i] for i in range(len(cases))]).add_prefix("sign ")
    rows.assign(disease=np.array(world.classes)[cases.labels]).to_csv(folder / "cases.csv", index=False)
    graph = world.graph if true else world.graph.shuffled(7, world.classes)
    pd.DataFrame([(e.first, e.second) for e in graph.edges], columns=["child", "parent"]).to_csv(
        folder / "tree.csv", index=False
    )
    return folder / "cases.csv", folder / "tree.csv"


@pytest.mark.slow
def test_a_true_tree_helps_and_a_shuffled_one_is_found_out(tmp_path):
    found = {}
    for name, true in (("true", True), ("shuffled", False)):
        (folder := tmp_path / name).mkdir()
        cases, tree = ward(folder, true)
        given = (f"cases={cases}", f"edges={tree}", "label=disease", "budgets=2")
        code, _, errors = report("rare_disease", folder / "run", *given)
        assert code == 0, errors
        _, over = check(folder / "run", tree)
        (found[name],) = (row for row in over["comparisons"] if not row["exploratory"])
        page = (folder / "run" / "report.html").read_text()
        told = {
            "true": ["is what helps: +"],
            "shuffled": ["they do as well: ", "the relations say matters: "],
        }
        assert any(words in page for words in told[name])
    assert found["true"]["verdict"] == "helps" and found["true"]["low"] > 0.01
    assert found["shuffled"]["verdict"] != "helps" and abs(found["shuffled"]["gain"]) < 0.01


def small(folder, **changed):
    cases, tree = ward(folder, branches=2, leaves=2, features=3, of_branch=1.0)
    given = {"cases": cases, "edges": tree, "label": "disease", "budgets": "2", **changed}
    return [f"{name}={value}" for name, value in given.items()]


@pytest.mark.slow
def test_diseases_that_occur_together_and_a_name_that_is_an_attack(tmp_path):
    attack = "<img src=x onerror=alert(1)>|b"
    given = small(tmp_path, budgets="3", headline_arm="graph head")
    (tmp_path / "tree.csv").write_text(
        "a,b,kind,weight\nb0.0,b0.1,co-occurs,2\nb0.1,b1.0,causes,0.5\nb1.0,b1.1,co-occurs,1\n"
    )
    for path in (tmp_path / "tree.csv", tmp_path / "cases.csv"):
        path.write_text(path.read_text().replace("b0.0", attack))
    code, _, errors = report("rare_disease", tmp_path / "run", *given)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results and attack in results["classes"]
    assert results["headline"]["arm"] == "graph head"
    hierarchy = json.loads((tmp_path / "run" / "hierarchy.json").read_text())
    steps = dict(
        zip(results["classes"], hierarchy["distances"][results["classes"].index(attack)], strict=True)
    )
    assert steps == {attack: 0, "b0.1": 0.5, "b1.0": 2.5, "b1.1": 3.5}
    assert {row["metric"] for row in hierarchy["arms"]} == {"mean_distance", "distance_of_mistake"}, (
        "no branches"
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


REFUSALS = {
    "a class that the graph lacks": (
        {"names": "b0.0=b00.1"},
        'tree.csv: "b00.1" is not in the graph. Did you mean "b0.1".*names=b0.0=NAME',
    ),
    "two classes of one name": ({"names": "b0.0=b0.1"}, 'b0.0 and b0.1 are all "b0.1" there'),
    "a name for no class": ({"names": "b9.0=b0.1"}, 'names speaks of "b9.0".*there are b0.0'),
    "a name without a class": ({"names": "b0.1"}, "CLASS=NAME"),
    "no such label": ({"label": "diseases"}, 'no column "diseases".*Did you mean "disease"'),
    "no such sign": ({"use": "sign 99"}, 'no column "sign 99"'),
    "no such column to leave out": ({"leave_out": "colour"}, 'no column "colour"'),
    "more cases than there are": ({"budgets": "500"}, "500 labels a class were asked for"),
    "a headline that is not drawn": ({"headline_budget": "3"}, "about 3 labels a class; the budgets are"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_anything_is_trained(tmp_path, case):
    changed, words = REFUSALS[case]
    code, _, errors = report("rare_disease", tmp_path / "run", *small(tmp_path, **changed))
    assert code == 2 and re.search(words, errors, re.DOTALL), errors
    assert not (tmp_path / "run" / "results.json").exists()


RELATIONS = {
    "a circle": (
        "b0.0,b0\nb0.1,b0\nb0,b0.1\nb1.0,b1\nb1.1,b1\n",
        "tree.csv: Nothing can be a kind of itself",
    ),
    "all alike": ("b0.0,x\nb0.1,x\nb1.0,x\nb1.1,x\n", "nothing that shuffling could take away"),
    "half a relation": ("b0.0,b0\nb0.1,\n", "tree.csv, row 3: a relation needs two classes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RELATIONS)
def test_relations_that_say_nothing_or_nonsense_are_refused(tmp_path, case):
    given, (lines, words) = small(tmp_path), RELATIONS[case]
    (tmp_path / "tree.csv").write_text("child,parent\n" + lines)
    code, _, errors = report("rare_disease", tmp_path / "run", *given)
    assert code == 2 and re.search(words, errors), errors
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_an_ontology_file_is_read_and_its_names_are_found(tmp_path):
    given = small(
        tmp_path, edges=tmp_path / "tree.obo", names="b0.0=eczema,b0.1=acne,b1.0=gout,b1.1=arthrosis"
    )
    terms = {"X:1": "eczema", "X:2": "acne", "X:3": "gout", "X:4": "arthritis"}
    stanzas = [f"[Term]\nid: {node}\nname: {name}\nis_a: X:0 ! illness\n" for node, name in terms.items()]
    (tmp_path / "tree.obo").write_text("\n".join(["[Term]\nid: X:0\nname: illness\n", *stanzas]))
    code, _, errors = report("rare_disease", tmp_path / "run", *given)
    words = '"arthrosis" is not in the graph. Did you mean "arthritis"'
    assert code == 2 and words in errors and "names=b1.1=NAME" in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "words"), [(["b0.0"], "one-class"), (["b0.0", "b1.0"], "All orders of these 2")]
)
def test_one_disease_and_two_are_refused(tmp_path, kept, words):
    given = small(tmp_path)
    rows = pd.read_csv(tmp_path / "cases.csv")
    rows[rows["disease"].isin(kept)].to_csv(tmp_path / "cases.csv", index=False)
    code, _, errors = report("rare_disease", tmp_path / "run", *given)
    assert code == 2 and words in errors, errors
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    "changed", [{"headline_arm": "hierarchy"}, {"margin": "2"}, {"preset": "fast"}, {"edges": "nowhere.csv"}]
)
def test_parameters_out_of_range_are_refused(tmp_path, changed):
    code, _, errors = report("rare_disease", tmp_path / "run", *small(tmp_path, **changed))
    assert code == 2 and next(iter(changed)) in errors, errors
    assert not (tmp_path / "run").exists()
