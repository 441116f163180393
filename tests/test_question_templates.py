"""Templates that answer a question, run for real, their numbers held against other computations."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_templates import made, recomputed, report

from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.draws import few_shot_draw
from tljupyter.domains.readers import read_folder
from tljupyter.evidence.comparison import derived_seed
from tljupyter.evidence.ranking.scores import logme
from tljupyter.refusals import Refusal
from tljupyter.reports.gallery import read_entry
from tljupyter.reports.templates import find_template, list_templates
from tljupyter.transfer.probe import stage_features

ANTS, SQUEEZENET = "natural_ants_bees", "weights_small_pretrained/squeezenet1_0_imagenet.safetensors"
RESNET20 = "weights_small_pretrained/resnet20_cifar10.npz"
SMALL = "small_groupnorm=random"


def pictures(folder, each=30, labelled=None, classes=("bright", "dark"), sided=False):
    "Noise with a patch that is bright or dark; of each class so many in a labels.csv, or in folders of classes."
    rng, rows = np.random.default_rng(0), ["file,label"]
    for name in classes:
        for i in range(each):
            pixels = rng.normal(110, 30, (48, 48, 3))
            pixels[8:36, 12:40] += 60 if name == "bright" else -60
            side = f"{'test' if i % 3 == 0 else 'train'}/" if sided else ""
            path = folder / f"{side}{name}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            known = labelled is None or i < labelled
            rows.append(f"{path.relative_to(folder)},{name if known else ''}")
    if labelled is not None:
        (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def found(folder, what):
    "What a template has written under its own name into results.json."
    return json.loads((folder / "results.json").read_text())[what]


def probe():
    "Somebody else's linear probe."
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))


def seen_by(data_dir, domain, name, weights):
    "Frozen features of all images, and where each image is."
    rows = stage_features(load_backbone(name, data_dir / weights), domain.items)
    return rows, {str(case): i for i, case in enumerate(domain.names)}


def levels(predictions):
    "Balanced accuracy of every arm, draw by draw, by scikit-learn."
    test = predictions[predictions["part"] == "test"]
    by = test.groupby(["arm", "labels_per_class", "draw"])
    return by.apply(
        lambda rows: balanced_accuracy_score(rows["label"], rows["predicted"]), include_groups=False
    )


def test_the_templates_say_what_they_ask_for():
    schemas = {one.template: one for one in list_templates()}
    assert schemas["backbone_choice"].json_schema()["required"] == ["data_dir", "backbones"]
    for name in ("backbone_choice", "labels_needed", "image_folder"):
        assert all(one.help for one in schemas[name].parameters if one.name != "seed"), name
        assert schemas[name].takes_run_dir and schemas[name].summary


# --- backbone_choice -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "told"), [(10, "cannot tell"), (60, "told apart")])
def test_backbone_choice_on_real_images(tmp_path, data_dir, labels, told):
    named = f"squeezenet1_0={data_dir / SQUEEZENET},resnet20_cifar={data_dir / RESNET20},{SMALL}"
    code, (last,), errors = report(
        "backbone_choice",
        tmp_path / "run",
        f"data_dir={data_dir / ANTS}",
        f"backbones={named}",
        f"labels_per_class={labels}",
    )
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    choice = results.pop("backbone_choice")
    assert recomputed(results, predictions) == results

    mine = levels(predictions).groupby("arm").mean()
    assert choice["measured"] == pytest.approx(mine.to_dict())
    (declared,) = (row for row in results["comparisons"] if not row["exploratory"])
    assert declared["arm"] == choice["choice"] and declared["draws"] == 10
    assert declared["gain"] == pytest.approx(mine[declared["arm"]] - mine[declared["baseline"]])
    assert choice["take"] == choice["ranking"][0]["backbone"] == mine.idxmax() == "squeezenet1_0"
    assert choice["audit"][0]["regret"] == pytest.approx(0) and choice["verdict"] == told
    times = {row["backbone"]: row["milliseconds"] for row in choice["ranking"]}
    alone = told == "told apart"
    assert choice["choice"] == ("squeezenet1_0" if alone else min(times, key=times.get))
    assert choice["better_than_choice"] == ([] if alone else ["squeezenet1_0"])

    domain = read_folder(data_dir / ANTS)
    rows, place = seen_by(data_dir, domain, "squeezenet1_0", SQUEEZENET)
    of_arm = predictions[(predictions["arm"] == "squeezenet1_0") & (predictions["draw"] == 0)]
    few = [place[case] for case in of_arm[of_arm["part"] == "train"]["case"]]
    test = [place[case] for case in of_arm[of_arm["part"] == "test"]["case"]]
    assert np.bincount(domain.labels[few]).tolist() == [labels, labels] and set(domain.splits[few]) == {
        "train"
    }
    assert choice["ranking"][0]["score"] == pytest.approx(
        logme(rows[few], domain.labels[few], offset=True), abs=1e-6
    )
    said = probe().fit(rows[few], domain.labels[few]).predict(rows[test])
    assert balanced_accuracy_score(domain.labels[test], said) == pytest.approx(
        levels(of_arm).iloc[0], abs=0.05
    )

    entry = read_entry(tmp_path / "run")
    assert entry.verdict == declared["verdict"] and entry.picture and entry.data == (ANTS,)
    page = (tmp_path / "run" / "report.html").read_text()
    assert last.endswith("report.html") and page.index("Take squeezenet1_0") < page.index("How sure?")


@pytest.mark.slow
def test_backbones_that_know_nothing_are_not_told_apart(tmp_path):
    rng, folder = np.random.default_rng(0), pictures(tmp_path / "images", each=24)
    for path in folder.rglob("*.png"):  # noise alone: there is nothing to tell
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
    given = (f"data_dir={folder}", f"backbones={SMALL},resnet20_cifar=random", "labels_per_class=8")
    code, _, errors = report("backbone_choice", tmp_path / "run", *given, "score=probe", "seed=1")
    assert code == 0, errors
    choice, (_, predictions) = found(tmp_path / "run", "backbone_choice"), made(tmp_path / "run")
    times = {row["backbone"]: row["milliseconds"] for row in choice["ranking"]}
    assert choice["verdict"] == "cannot tell" and choice["choice"] == min(times, key=times.get)
    assert {row["letters"] for row in choice["ranking"]} == {"A"} and len(choice["audit"]) == 1
    drawn, test = (set(predictions[predictions["part"] == part]["case"]) for part in ("train", "test"))
    assert not drawn & test and len(test) == pytest.approx(0.4 * 48, abs=2)
    assert "Cannot tell which is best" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("backbones=resnet81=random,resnet18=random", 'Did you mean "resnet18"?'),
        (f"backbones={SMALL}", "Give two or more"),
        (f"backbones={SMALL},{SMALL}", "Give two or more"),
        (f"backbones={SMALL},digits_convnet=random;labels_per_class=19", "The most is 18"),
        (f"backbones={SMALL},digits_convnet=random;labels_per_class=3", "at least 4"),
        (f"backbones={SMALL},digits_convnet=random;score=leep", "one of logme"),
    ],
)
def test_backbone_choice_refuses(tmp_path, given, said):
    folder = pictures(tmp_path / "images")
    code, _, errors = report("backbone_choice", tmp_path / "run", f"data_dir={folder}", *given.split(";"))
    assert code == 2 and said in errors, errors


@pytest.mark.slow
@pytest.mark.parametrize("template", ["backbone_choice", "labels_needed", "image_folder"])
def test_a_folder_of_one_class_is_refused(tmp_path, template):
    folder = pictures(tmp_path / "images", each=6, classes=("bright",))
    which = f"backbones={SMALL},digits_convnet=random" if template == "backbone_choice" else "weights=random"
    code, _, errors = report(template, tmp_path / "run", f"data_dir={folder}", which)
    assert code == 2 and "one-class" in errors, errors


# --- labels_needed -------------------------------------------------------------------------------------------------


def judged_by_the_rest(rows, labels, budget, draws=20):
    "Balanced accuracy of somebody else's probe on so many labels a class, judged by all others."
    split = StratifiedShuffleSplit(draws, train_size=2 * budget, random_state=7)
    found = []
    for train, rest in split.split(rows, labels):
        said = probe().fit(rows[train], labels[train]).predict(rows[rest])
        found.append(balanced_accuracy_score(labels[rest], said))
    return float(np.mean(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "labels", "goal", "identified"),
    [(ANTS, 20, 0.9, False), ("lung_kermany_pediatric", 30, 0.88, True)],
)
def test_labels_needed_on_real_images(tmp_path, data_dir, data, labels, goal, identified):
    given = ("backbone=squeezenet1_0", f"weights={data_dir / SQUEEZENET}", f"labels_per_class={labels}")
    code, _, errors = report(
        "labels_needed", tmp_path / "run", f"data_dir={data_dir / data}", *given, f"goal={goal}"
    )
    assert code == 0, errors
    told = found(tmp_path / "run", "labels_needed")
    curve, needed, truth = told["curve"], told["needed"], told["truth"]
    assert curve["have"] == needed["have"] == labels == truth["budgets"][0] and max(curve["budgets"]) < labels
    assert needed["identified"] == identified == (needed["high"] is not None)

    domain = read_folder(data_dir / data)
    rows, place = seen_by(data_dir, domain, "squeezenet1_0", SQUEEZENET)
    train, labelled = domain.where("train"), domain.labels
    for at in (0, -1):  # with as many labels as were at hand, and with the most
        mine = judged_by_the_rest(rows[train], labelled[train], truth["budgets"][at])
        assert truth["means"][at] == pytest.approx(mine, abs=0.03)
    drawn = few_shot_draw(labelled, labels, derived_seed(0, "draw", 0), domain.groups, train).train
    mine = judged_by_the_rest(rows[drawn], labelled[drawn], curve["budgets"][3])
    assert curve["means"][3] == pytest.approx(mine, abs=0.07)
    least = np.bincount(labelled[train]).min()
    assert 2 * labels < max(truth["budgets"]) <= 0.8 * least

    queue = [one["case"] for one in told["queue"]]
    assert len(set(queue)) == 10 and {domain.splits[place[case]] for case in queue} == {"train"}
    assert not set(queue) & set(domain.names[drawn])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index(needed["why"]) < page.index("Was the answer right?") and truth["why"] in page
    assert read_entry(tmp_path / "run").headline == {}


@pytest.mark.parametrize(
    ("low", "high", "truth", "word"),
    [
        (10, 40, {30: 0.85, 60: 0.93}, "right"),
        (0, 0, {20: 0.92}, "right"),  # reached already
        (10, 40, {30: 0.95, 60: 0.97}, "wrong"),  # too many
        (10, 40, {30: 0.80, 60: 0.85}, "wrong"),  # too few
        (0, 0, {20: 0.85}, "wrong"),
        (10, 40, {30: 0.85, 60: 0.89}, "cannot tell"),  # the interval of what was measured is around the goal
        (10, 40, {30: 0.91, 60: 0.95}, "cannot tell"),
        (10, 400, {30: 0.85, 90: 0.93}, "cannot tell"),  # beyond the labels there are
        (10, None, {30: 0.85, 90: 0.88}, "right"),  # as far as it went
        (10, None, {30: 0.95, 90: 0.98}, "wrong"),
        (0, None, {20: 0.80, 90: 0.88}, "cannot tell"),
    ],
)
def test_an_answer_is_held_against_the_truth(low, high, truth, word):
    "The template's own cell, on invented curves whose points are known to within two points."
    cells = json.loads(find_template("labels_needed").read_text())["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "def held_against" in "".join(cell["source"]))
    levels = [SimpleNamespace(estimate=one, low=one - 0.02, high=one + 0.02) for one in truth.values()]
    here = {
        "curve": SimpleNamespace(have=20),
        "needed": SimpleNamespace(low=low, high=high),
        "truth": SimpleNamespace(budgets=tuple(truth), intervals=lambda: levels),
        "goal": 0.9,
        "top": 90,
        "Refusal": Refusal,
    }
    exec(source, here)
    assert here["held"][0] == word, here["held"]


@pytest.mark.slow
def test_few_labels_give_no_curve_and_still_a_queue(tmp_path):
    folder = pictures(tmp_path / "images", each=20, labelled=6)
    given = (f"data_dir={folder}", "backbone=small_groupnorm", "weights=random", "strategy=margin")
    code, _, errors = report("labels_needed", tmp_path / "run", *given)
    assert code == 0, errors
    told = found(tmp_path / "run", "labels_needed")
    assert "10 labels of each" in told["refused"] and "6 labels of the scarcest" in told["refused"]
    assert "needed" not in told and told["doubling"] is None
    table = pd.read_csv(folder / "labels.csv", index_col="file")["label"]
    queue = [one["case"] for one in told["queue"]]
    assert len(set(queue)) == 10 and table[queue].isna().all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index("A learning curve needs at least") < page.index("Which to label next?")


@pytest.mark.slow
def test_an_easy_goal_is_reached_and_every_label_is_used(tmp_path):
    folder = pictures(tmp_path / "images", each=30, sided=True)
    given = (f"data_dir={folder}", "backbone=small_groupnorm", "weights=random", "goal=0.7")
    code, _, errors = report("labels_needed", tmp_path / "run", *given)
    assert code == 0, errors
    told = found(tmp_path / "run", "labels_needed")
    assert told["needed"]["reached"] and told["needed"]["have"] == 20, "the test side is left alone"
    assert "truth" not in told and "queue" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("labels_per_class=31", "The most is 30"),
        ("goal=0.5", "above chance"),
        ("goal=1.5", "less than 1"),
        ("backbone=resnet81", 'Did you mean "resnet18"?'),
        ("strategy=margins", 'Did you mean "margin"?'),
    ],
)
def test_labels_needed_refuses(tmp_path, given, said):
    folder = pictures(tmp_path / "images")
    usual = ["backbone=small_groupnorm", "weights=random"]
    kept = [one for one in usual if one.partition("=")[0] != given.partition("=")[0]]
    code, _, errors = report("labels_needed", tmp_path / "run", f"data_dir={folder}", *kept, given)
    assert code == 2 and said in errors, errors


# --- image_folder --------------------------------------------------------------------------------------------------


def tljupyter(*words):
    "A command of the kit; its output as JSON."
    command = [sys.executable, "-m", "tljupyter", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_image_folder_on_real_images(tmp_path, data_dir):
    source, run = data_dir / ANTS, tmp_path / "run"
    given = ("backbone=squeezenet1_0", f"weights={data_dir / SQUEEZENET}")
    code, _, errors = report("image_folder", run, f"data_dir={source}", *given)
    assert code == 0, errors
    results, predictions = made(run)
    assert recomputed(results, predictions) == results
    mine = levels(predictions).groupby(["arm", "labels_per_class"]).mean()
    for row in results["arms"]:
        if row["metric"] == "balanced_accuracy":
            assert row["mean"] == pytest.approx(mine[row["arm"], row["labels_per_class"]])
    assert mine["linear probe", 5] > 0.75 > mine["from scratch", 5]
    (declared,) = (row for row in results["comparisons"] if not row["exploratory"])
    assert declared["verdict"] == "helps" and read_entry(run).verdict == "helps"
    page = (run / "report.html").read_text()
    assert page.index('class="verdict"') < page.index("The images") < page.index("How was this made?")

    exported = tljupyter("export", run)
    assert exported["agrees_with_report"]["largest_difference"] < 1e-4
    rows = predictions.query(
        "arm == 'linear probe' and draw == 0 and labels_per_class == 5 and part == 'test'"
    )
    rows = rows.iloc[:: len(rows) // 9]
    told = tljupyter("predict", run / "model", *(source / case for case in rows["case"]))
    said = [one["probabilities"]["bees"] for one in told["predictions"]]
    assert said == pytest.approx(rows["p_1"].tolist(), abs=1e-4)


@pytest.mark.slow
def test_image_folder_on_a_small_folder(tmp_path):
    folder = pictures(tmp_path / "images", each=16)
    given = (
        f"data_dir={folder}",
        "backbone=small_groupnorm",
        "weights=random",
        "budgets=4,40",
        "headline_arm=fine-tuned",
    )
    code, _, errors = report("image_folder", tmp_path / "run", *given)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results and results["headline"]["arm"] == "fine-tuned"
    assert {row["labels_per_class"] for row in results["arms"]} == {4}
    assert "40 labels a class left out" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "model.json").read_text())["checked"]["largest_difference"] < 1e-3
