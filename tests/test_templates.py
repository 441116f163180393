"""The kit's own templates, run for real: papermill, a fresh kernel, real films where there are some."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tljupyter.evidence.results import results_from_predictions
from tljupyter.reports.templates import find_template, list_templates


def report(template, out, *parameters):
    "Run a template by the command line; its exit code, last line and error stream."
    given = [part for parameter in parameters for part in ("-p", parameter)]
    command = [sys.executable, "-m", "tljupyter", "report", template, "--out", str(out), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=840)
    return done.returncode, done.stdout.strip().splitlines()[-1:] or [""], done.stderr


def made(folder):
    "results.json and predictions.parquet of a run."
    return json.loads((folder / "results.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


def recomputed(results, predictions):
    return results_from_predictions(predictions, results["classes"], results["headline"], results["margin"])


def test_both_templates_are_listed_with_their_parameters():
    schemas = {schema.template: schema for schema in list_templates()}
    assert {"few_digits", "lung_xray"} <= set(schemas)
    assert schemas["lung_xray"].json_schema()["required"] == ["data_dir"]
    assert find_template("few_digits").parent.name == "templates"


@pytest.mark.slow
def test_few_digits_twice_gives_the_same_numbers(tmp_path):
    for name in ("one", "two"):
        code, (last,), errors = report("few_digits", tmp_path / name, "draws=2", "epochs=2")
        assert code == 0, errors
        assert last == str(tmp_path / name / "report.html")
    (first, rows), (second, same_rows) = made(tmp_path / "one"), made(tmp_path / "two")
    assert first == second
    pd.testing.assert_frame_equal(rows, same_rows)
    assert {row["arm"] for row in first["arms"]} >= {"majority", "from scratch", "linear probe", "fine-tuned"}
    assert recomputed(first, rows) == first
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.index('class="verdict"') < page.index(first["headline"]["arm"]) < page.index("Four steps")


def films(folder, patients=12):
    "Noise films of two classes, two films a patient: ill ones have a bright patch."
    rng, rows = np.random.default_rng(0), ["file,label,patient"]
    for patient in range(patients):
        for film in range(2):
            for label in ("ill", "well"):
                pixels = rng.normal(90, 30, (96, 96))
                pixels[20:60, 30:70] += 90 * (label == "ill")
                name = f"{label}/{label}{patient}_{film}.png"
                (folder / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
                rows.append(f"{name},{label},{label}{patient}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_lung_xray_on_a_folder_without_a_split(tmp_path):
    folder = films(tmp_path / "films")
    parameters = (f"data_dir={folder}", "backbone=resnet18", "weights=random", "budgets=3", "input_size=64")
    code, _, errors = report("lung_xray", tmp_path / "run", *parameters)
    assert code == 0, errors
    results, predictions = made(tmp_path / "run")
    assert recomputed(results, predictions) == results
    test = predictions[predictions["part"] == "test"]
    drawn = predictions[predictions["part"] == "train"]
    assert not set(test["group"]) & set(drawn["group"]), "a patient on both sides"
    assert (test.groupby(["arm", "draw"])["case"].nunique() == test["case"].nunique()).all()


@pytest.mark.slow
def test_lung_xray_on_real_films(tmp_path, data_dir):
    weights = data_dir / "weights_small_pretrained/squeezenet1_0_imagenet.safetensors"
    source = data_dir / "lung_kermany_pediatric"
    parameters = (
        f"data_dir={source}",
        f"weights={weights}",
        "backbone=squeezenet1_0",
        "budgets=5",
        "engine=eager",
        "subgroup_columns=[subtype]",
    )
    code, _, errors = report("lung_xray", tmp_path / "run", *parameters)
    assert code == 0, errors
    (said,) = json.loads((tmp_path / "run" / "model.json").read_text())["about"]["subgroups"]
    assert said.startswith("subtype: Worst group: "), said
    results, predictions = made(tmp_path / "run")
    assert {row["metric"] for row in results["comparisons"]} >= {"balanced_accuracy", "accuracy", "auc"}
    means = {row["arm"]: row["mean"] for row in results["arms"] if row["metric"] == "balanced_accuracy"}
    assert means["majority"] == 0.5 and means["linear probe"] > 0.7
    assert predictions["case"].nunique() > 240


@pytest.mark.slow
def test_films_of_one_class_are_refused_before_anything_runs(tmp_path):
    folder = films(tmp_path / "films", patients=3)
    for path in (folder / "well").iterdir():
        path.unlink()
    rows = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(row for row in rows if "well" not in row))
    code, _, errors = report("lung_xray", tmp_path / "run", f"data_dir={folder}", "weights=random")
    assert code == 2 and "one-class" in errors, errors
