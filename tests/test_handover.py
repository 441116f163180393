"""Handing over: the model that leaves is the model that was judged, whoever opens it and whatever it is fed."""

import csv
import dataclasses
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits

from tljupyter.backbones.weights import load_backbone, save_backbone
from tljupyter.cli import main
from tljupyter.domains.gate import check, gate_facts
from tljupyter.domains.readers import read_arrays, read_folder
from tljupyter.evidence.arms import FROM_SCRATCH, Headline
from tljupyter.evidence.comparison import Preset, compare, derived_seed
from tljupyter.evidence.images import ImageArms
from tljupyter.handover.card import in_markdown, model_card
from tljupyter.handover.export import (
    export_run,
    first_draw,
    predict_files,
    threshold_of_first_draw,
)
from tljupyter.handover.model import (
    decision_digest,
    handed_model,
    load_model,
    read_examples,
    read_facts,
    save_model,
    tempered_threshold,
)
from tljupyter.handover.onnx import export_onnx, need_extra, runtime
from tljupyter.refusals import Refusal
from tljupyter.reports.stamp import stamp
from tljupyter.runs.folder import RunFolder
from tljupyter.training import Network, TrainingSpec
from tljupyter.transfer.baselines import FromScratch, Majority, ScratchNetwork
from tljupyter.transfer.finetuning import FineTuned, transfer_structure
from tljupyter.transfer.probe import LinearProbe

NAMES = ("<b>five</b>\n", "肺炎 | six")


def digits(*wanted: int, names: dict[int, str] | None = None):
    "A domain of some digits, every second one a test item."
    bunch = load_digits()
    chosen = np.flatnonzero(np.isin(bunch.target, wanted))
    named = [(names or {}).get(t, f"digit {t}") for t in bunch.target[chosen]]
    sides = ["train" if i % 2 else "test" for i in range(len(chosen))]
    return read_arrays((bunch.images[chosen] / 16).astype(np.float32), named, splits=sides, name="digits <i>")


@pytest.fixture(scope="module")
def domain():
    return digits(5, 6, names={5: NAMES[0], 6: NAMES[1]})


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("digits_convnet", "random", seed=0)


@pytest.fixture(scope="module")
def few(domain):
    train = domain.where("train")
    return domain.take(
        np.concatenate([train[domain.labels[train] == code][:10] for code in range(len(domain.classes))])
    )


@pytest.fixture(scope="module")
def test(domain):
    return domain.take(domain.where("test")[:30])


@pytest.fixture(scope="module")
def probe(backbone, few):
    return LinearProbe(backbone).fit(few)


@pytest.fixture
def saved(probe, domain, tmp_path):
    return save_model(probe, tmp_path / "model", classes=domain.classes, threshold=0.4)


def pictures(domain):
    return [domain.items[i] for i in range(len(domain))]


# Before and after


@pytest.mark.parametrize(
    "make",
    [
        lambda b: LinearProbe(b),
        lambda b: LinearProbe(b, stage="block2"),
        lambda b: FineTuned(b, "last two", TrainingSpec(epochs=2, learning_rate=1e-4)),
        lambda b: FineTuned(b, "all", TrainingSpec(epochs=1, learning_rate=1e-4), moves="lora"),
        lambda b: FromScratch(ScratchNetwork(b, steps=8)),
    ],
    ids=["probe", "probe of a middle stage", "fine-tuned", "low-rank", "from scratch"],
)
def test_probabilities_are_equal_before_and_after(make, backbone, few, test, tmp_path):
    estimator = make(backbone).fit(few)
    before = estimator.predict_proba(test)
    known = {"classes": few.classes} if isinstance(estimator, LinearProbe) else {}
    save_model(estimator, tmp_path / "model", examples=test, **known)
    model = load_model(tmp_path / "model")
    assert before.std(0).min() > 1e-3, "the estimator says the same of everything: equality would mean little"
    assert np.abs(model.predict_proba(pictures(test)) - before).max() < 1e-6
    assert (model.predict(pictures(test)) == np.array(few.classes)[before.argmax(1)]).all()
    facts = read_facts(tmp_path / "model")
    assert facts["checked"]["cases"] == len(test) and facts["checked"]["largest_difference"] < 1e-6
    assert facts["trained"]["method"] in ("linear probe", "fine-tuned", "from scratch")


def test_saving_what_was_loaded_changes_nothing_else(saved, test, tmp_path):
    model = load_model(saved)
    save_model(model, tmp_path / "again", threshold=0.9)
    again = load_model(tmp_path / "again")
    assert (model.threshold, again.threshold) == (0.4, 0.9) and again.trained == model.trained
    assert np.array_equal(again.predict_proba(pictures(test)), model.predict_proba(pictures(test)))


def test_a_saved_model_does_not_follow_later_training(backbone, few, test, tmp_path):
    estimator = FineTuned(backbone, "last two", TrainingSpec(epochs=1)).fit(few)
    save_model(estimator, tmp_path)
    before = load_model(tmp_path).predict_proba(pictures(test))
    with torch.no_grad():
        estimator.network_.head.weight.add_(1.0)
        estimator.network_.head.bias[0] += 3.0
    assert np.array_equal(load_model(tmp_path).predict_proba(pictures(test)), before)


def test_a_network_that_was_changed_behind_its_estimator_is_refused(backbone, few, test, tmp_path):
    estimator = FineTuned(backbone, "last two", TrainingSpec(epochs=1, learning_rate=1e-4)).fit(few)
    with torch.no_grad():  # a frozen stage: the estimator goes on with the features of the untouched one
        for parameter in estimator.network_.backbone.stages[0].module.parameters():
            parameter.add_(0.5)
    with pytest.raises(Refusal, match="Fit it again"):
        save_model(estimator, tmp_path / "other", examples=test)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_the_threshold_is_obeyed(threshold, probe, domain, test):
    model = handed_model(probe, classes=domain.classes, threshold=threshold)
    above = model.predict_proba(pictures(test))[:, 1] > threshold
    assert (model.predict(pictures(test)) == np.array(domain.classes)[above.astype(int)]).all()
    assert threshold not in (0.3, 0.7) or 0 < above.sum() < len(test)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_is_obeyed(temperature, probe, domain, test):
    bare = handed_model(probe, classes=domain.classes).predict_proba(pictures(test))
    model = handed_model(probe, classes=domain.classes, temperature=temperature)
    powers = bare ** (1 / temperature)
    assert np.allclose(model.predict_proba(pictures(test)), powers / powers.sum(1, keepdims=True), atol=1e-9)
    for cut in (0.2, 0.5, 0.8):
        tempered = powers[:, 1] / powers.sum(1) > tempered_threshold(cut, temperature)
        assert (tempered == (bare[:, 1] > cut)).all()


def test_what_cannot_be_handed_over_is_refused(backbone, few, probe, domain, tmp_path):
    for estimator, match in (
        (Majority().fit(few), "no network"),
        (LinearProbe(backbone), "not fitted"),
        (probe, "give classes="),
    ):
        with pytest.raises(Refusal, match=match):
            save_model(estimator, tmp_path / "none")
    for change, match in (
        ({"threshold": 1.5}, "probability from 0 to 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"classes": ["a", "a"]}, "each another"),
        ({"classes": ["a", "b", "c"]}, "3 are needed"),
    ):
        with pytest.raises(Refusal, match=match):
            save_model(probe, tmp_path / "none", **{"classes": domain.classes, **change})
    three = transfer_structure(backbone, ("a", "b", "c"))
    with pytest.raises(Refusal, match="cuts between two classes"):
        save_model(three, tmp_path / "none", threshold=0.5)
    with pytest.raises(Refusal, match="was trained for"):
        save_model(three, tmp_path / "none", classes=["c", "b", "a"])
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot be written"):
        save_model(three, tmp_path / "file")


# Files that were changed, and files that could run code


def change(folder: Path, again: bool = True, **values: object) -> None:
    "Write other facts into model.json, with a digest that fits them or not."
    path = folder / "model.json"
    facts = {**json.loads(path.read_text()), **values}
    if again:
        facts["digests"]["decision"] = decision_digest(facts)
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("values", "again", "match"),
    [
        ({"threshold": 0.9}, False, "changed after"),
        ({"classes": list(reversed(NAMES))}, False, "changed after"),
        ({"temperature": 5.0}, False, "changed after"),
        ({"mean": [0.1]}, False, "changed after"),
        ({"schema": 3}, True, "another tljupyter"),
        ({"schema": 1}, True, "without its head"),
        ({"architecture": "small_groupnorm"}, True, "another architecture"),
        ({"architecture": "resnet1"}, True, 'No backbone is called "resnet1"'),
        ({"stage": "block9"}, True, 'no stage "block9"'),
        ({"stage": "block2"}, True, "a head of 64 features"),
        ({"classes": ["a", "b", "c"]}, True, "a head of 64 features and 2 classes"),
        ({"classes": "ab"}, True, "two or more names"),
        ({"temperature": "warm"}, True, "above 0"),
        ({"threshold": True}, True, "probability from 0 to 1"),
        ({"head": "other"}, True, "knows target_head"),
        ({"input_size": "big"}, True, "input_size"),
        ({"digest": "0" * 32}, True, "not the weights that were saved"),
        ({"digests": {"head": "0" * 32}}, True, "not the head that was saved"),
        ({"digests": []}, False, "changed after"),
    ],
)
def test_other_facts_are_refused(values, again, match, saved):
    change(saved, again, **values)
    with pytest.raises(Refusal, match=match):
        load_model(saved)


@pytest.mark.parametrize("key", ["classes", "temperature", "mean", "head", "digest", "licence", "trained"])
def test_missing_facts_are_refused_by_name(key, saved):
    facts = json.loads((saved / "model.json").read_text())
    del facts[key]
    (saved / "model.json").write_text(json.dumps(facts))
    with pytest.raises(Refusal, match=f"lacks {key}"):
        load_model(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"'])
def test_a_broken_json_is_refused(content, saved):
    (saved / "model.json").write_bytes(content)
    with pytest.raises(Refusal, match="model.json"):
        load_model(saved)


def test_changed_and_cut_tensors_are_refused(saved):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")  # of the data, behind the header
    for place in (start + 3, len(whole) - 3):
        changed = bytearray(whole)
        changed[place] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(Refusal, match="digest is another"):
            load_model(saved)
    for content in (whole[: len(whole) // 2], b"", b"\x00" * 40):
        path.write_bytes(content)
        with pytest.raises(Refusal, match="model.safetensors"):
            load_model(saved)
    path.unlink()
    with pytest.raises(Refusal, match="no such weights file"):
        load_model(saved)


class Trap:
    "Leaves a trace where it is unpickled."

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_opened(saved, tmp_path):
    trace = tmp_path / "opened"
    bytes_ = pickle.dumps(Trap(trace))
    for name in ("model.safetensors", "model.json", "examples.safetensors"):
        folder = shutil.copytree(saved, tmp_path / f"with {name}")
        (folder / name).write_bytes(bytes_)
        with pytest.raises(Refusal, match=name):
            load_model(folder)
            read_examples(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.pkl").write_bytes(bytes_)
    for given in (alone, alone / "model.pkl", saved / "model.json", tmp_path / "absent"):
        with pytest.raises(Refusal, match="Give the folder|never opened"):
            load_model(given)
    assert not trace.exists()
    pickle.loads(bytes_)
    assert trace.exists(), "the trap works"


def test_the_folder_serves_as_weights_of_a_backbone(saved, backbone):
    assert load_backbone("", weights=saved).weights_digest == backbone.weights_digest
    assert load_backbone("digits_convnet", weights=saved).features == backbone.features
    with pytest.raises(Refusal, match="not of small_groupnorm"):
        load_backbone("small_groupnorm", weights=saved)


def test_no_folder_of_who_made_it_goes_along(backbone, few, tmp_path):
    save_backbone(backbone, tmp_path / "own" / "run")
    own = load_backbone("", weights=tmp_path / "own" / "run")
    assert own.weights_source == str(tmp_path / "own" / "run" / "model.safetensors")
    save_model(LinearProbe(own).fit(few), tmp_path / "model", classes=few.classes)
    assert read_facts(tmp_path / "model")["weights_source"] == "run/model.safetensors"
    assert str(tmp_path) not in (tmp_path / "model" / "model.json").read_text()


# What it is fed


def kinds(folder: Path) -> Path:
    "One picture of noise in many kinds of file and several sizes, below a class folder."
    rng = np.random.default_rng(0)
    (folder / "any").mkdir(parents=True)
    grey, wide = rng.integers(0, 256, (40, 30), np.uint8), rng.integers(0, 60000, (33, 70)).astype(np.uint16)
    image = Image.fromarray(grey)
    saved = {
        "grey.png": image,
        "colour.jpg": Image.fromarray(rng.integers(0, 256, (9, 80, 3), np.uint8)),
        "clear.png": Image.fromarray(rng.integers(0, 256, (20, 20, 4), np.uint8)),
        "sixteen.png": Image.fromarray(wide),
        "sixteen.tif": Image.fromarray(wide),
        "float.tif": Image.fromarray(wide.astype(np.float32) / 7),
        "palette.gif": image.convert("P"),
        "bits.png": image.convert("1"),
        "one.bmp": image.resize((1, 1)),
    }
    for name, picture in saved.items():
        picture.save(folder / "any" / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "any" / "turned.jpg", exif=turned)
    return folder


def test_every_kind_of_file_is_read_as_the_kit_reads_it(probe, domain, tmp_path):
    folder = kinds(tmp_path / "files")
    read = read_folder(folder)
    model = handed_model(probe, classes=domain.classes)
    paths = [folder / name for name in read.names]
    by_kit = probe.predict_proba(read)
    assert len(paths) == 10 and np.abs(model.predict_proba(paths) - by_kit).max() < 1e-6
    assert np.abs(model.predict_proba([Image.open(path) for path in paths]) - by_kit).max() < 1e-6
    assert np.abs(model.predict_proba(paths, batch_size=3) - by_kit).max() < 1e-6
    assert model.predict_proba(str(paths[0])).shape == (1, 2) and model.predict_proba([]).shape == (0, 2)


def test_arrays_are_the_images_that_they_show(probe, domain, test):
    model = handed_model(probe, classes=domain.classes)
    arrays = (np.stack([np.asarray(picture) for picture in pictures(test)]) / 255).astype(np.float32)
    wanted = probe.predict_proba(test)
    bytes_ = (arrays * 255).round().astype(np.uint8)
    for given in (arrays, bytes_, bytes_[..., None], np.repeat(bytes_[..., None], 3, 3), list(bytes_)):
        assert np.abs(model.predict_proba(given) - wanted).max() < 1e-6
    assert np.abs(model.predict_proba(bytes_[0]) - wanted[:1]).max() < 1e-6
    prepared = torch.from_numpy(np.stack([model.prepare(picture) for picture in pictures(test)]))
    assert np.abs(model.predict_proba(prepared, batch_size=7) - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (torch.zeros(2, 3, 8, 8), r"\(2, 3, 8, 8\).*\(n, 1, 8, 8\)"),
        (torch.zeros(2, 1, 9, 8), r"\(n, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"\(n, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "finite floats"),
        (torch.full((1, 1, 8, 8), float("nan")), "finite floats"),
        (np.zeros((8, 9, 3)), r"give \[image\]"),
        ([np.zeros((8, 8)), np.zeros((3, 8, 8))], "image 2.*channels, which come last"),
        ([np.zeros((8, 8, 2))], "1, 3 or 4 channels"),
        ([np.zeros((0, 8))], "image 1"),
        ([np.full((8, 8), 7.0)], "floats from 0 to 1"),
        ([np.full((8, 8), np.nan)], "finite floats"),
        ([np.zeros((8, 8), np.int64)], "int64"),
        ([None], "NoneType"),
        (["absent.png"], "absent.png: there is no such file"),
    ],
)
def test_what_is_no_image_is_refused_by_name(given, match, probe, domain):
    with pytest.raises(Refusal, match=match):
        handed_model(probe, classes=domain.classes).predict_proba(given)


def test_a_file_that_is_no_image_is_named(probe, domain, tmp_path):
    model = handed_model(probe, classes=domain.classes)
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(Refusal, match=r"notes\.png: not an image.*Remove"):
        model.predict_proba([tmp_path / "notes.png"])
    cut = tmp_path / "cut.png"
    Image.fromarray(np.zeros((200, 200), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(Refusal, match="cut.png"):
        model.predict_proba([cut])
    with pytest.raises(Refusal, match="image 1"):
        model.predict_proba([Image.open(io.BytesIO(cut.read_bytes()))])


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path):
    resnet = load_backbone("resnet18", "random", input_size=64)
    model = handed_model(Network(resnet, torch.nn.Linear(512, 2), ("a", "b")))
    Image.fromarray(np.zeros((1, 90_000), np.uint8)).save(tmp_path / "strip.png")
    with pytest.raises(Refusal, match="strip.png.*too narrow"):
        model.predict_proba([tmp_path / "strip.png"])


# ONNX


@pytest.mark.slow
def test_onnx_gives_equal_probabilities_and_says_what_they_mean(saved, test, tmp_path):
    model = dataclasses.replace(load_model(saved), temperature=1.7)
    inputs = np.stack([model.prepare(picture) for picture in pictures(test)])
    checked = export_onnx(model, tmp_path / "model.onnx", inputs)
    run = runtime((tmp_path / "model.onnx").read_bytes())
    wanted = model.predict_proba(pictures(test))
    for size in (1, 5, len(test)):  # the batch is free
        assert np.abs(run(inputs[:size]) - wanted[:size]).max() < 1e-4
    assert checked.largest_difference == pytest.approx(np.abs(run(inputs) - wanted).max(), abs=1e-6)
    import onnx

    told = onnx.load(tmp_path / "model.onnx")
    told = {entry.key: json.loads(entry.value) for entry in told.metadata_props}
    assert tuple(told["classes"]) == NAMES and told["threshold"] == 0.4 and told["temperature_inside"] == 1.7
    assert told["preprocessing"]["mean"] == [0.5] and told["preprocessing"]["channels"] == "L"


def test_without_the_extra_the_way_to_get_it_is_named(monkeypatch):
    need_extra()
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(Refusal, match=r'onnxscript: pip install "tljupyter\[export\]".*--no-onnx'):
        need_extra()


# A run and its export


def make_run(folder: Path, domain, backbone, arm: str = "linear probe", seed: int = 0) -> RunFolder:
    "A whole comparison of seconds, left behind as a report leaves it."
    arms = ImageArms(backbone, small=backbone)
    baseline = arms.from_scratch()
    scratch = ScratchNetwork(backbone, steps=4)
    baseline = dataclasses.replace(baseline, trials=({"network": scratch},))
    headline = Headline(labels_per_class=10, arm="linear probe")
    run = RunFolder.create(folder, "few_digits", {"seed": 0})
    run.tell("running")
    preset = Preset("tiny", (10,), 3, 3, 0, 1)
    compared = compare(domain, (arms.majority(), baseline, arms.linear_probe()), preset, headline, sink=run)
    run.write("results.json", compared.results())
    place = {name: i for i, name in enumerate(domain.names)}
    few = domain.take([place[case] for case in first_draw(compared.predictions, headline, "train")["case"]])
    made = {"linear probe": arms.linear_probe(), FROM_SCRATCH: baseline}[arm]
    fitted = made.make(compared.chosen[arm, 10], derived_seed(seed, "estimator", 0)).fit(few)
    run.write("gate.json", gate_facts(check(domain)))
    save_model(
        fitted,
        run.path,
        classes=domain.classes,
        threshold=threshold_of_first_draw(compared.predictions, headline),
        about={"name": "Digits <i>", "target": domain.name, "labels": few.counts(), "draw": 0},
        examples=domain.take(domain.where("test")[:12]),
    )
    stamp(run, {"seed": 0}, {domain.name: domain.digest}, {backbone.name: backbone.weights_digest}, "eager")
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, domain, backbone):
    run = make_run(tmp_path_factory.mktemp("run") / "run", domain, backbone)
    run.end()
    return run


@pytest.fixture
def run(finished, tmp_path):
    "A copy of the run that a test may spoil."
    return RunFolder.open(shutil.copytree(finished.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    return export_run(finished.path, tmp_path_factory.mktemp("out") / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory, domain):
    "The test digits as files, whose names are in the order of the test items."
    folder = tmp_path_factory.mktemp("files")
    for number, row in enumerate(domain.where("test")[:40]):
        domain.items[int(row)].save(folder / f"{number:02}.png")
    return folder


@pytest.mark.slow
def test_an_export_holds_the_model_that_was_judged(exported, finished, domain, files):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "card.html",
        "model.json",
        "model.onnx",
        "model.safetensors",
    ]
    facts, results = read_facts(exported), finished.read("results.json")
    assert facts["agrees_with_report"]["cases"] == 12
    assert facts["agrees_with_report"]["largest_difference"] < 1e-6
    assert facts["onnx"]["checked_on"] == "12 real cases" and facts["onnx"]["largest_difference"] < 1e-4
    model = load_model(exported)
    reported = first_draw(finished.predictions(), results["headline"]).set_index("case")
    reported = reported.loc[list(domain.names[domain.where("test")[:40]])]
    said = model.predict_proba(sorted(files.glob("*.png")))
    assert np.abs(said - reported[["p_0", "p_1"]].to_numpy()).max() < 1e-6
    decided = np.array(model.classes)[reported["predicted"].to_numpy()]
    assert (model.predict(sorted(files.glob("*.png"))) == decided).all()


def test_another_model_than_the_judged_one_is_told(tmp_path, domain, backbone):
    run = make_run(tmp_path / "run", domain, backbone, arm=FROM_SCRATCH)
    run.end()
    handed = export_run(run.path, onnx=False)
    assert handed == run.path / "model"
    assert read_facts(handed)["agrees_with_report"]["largest_difference"] > 0.01
    assert "is not the very network that was judged" in (handed / "README.md").read_text()


def test_a_run_that_has_not_finished_is_refused(tmp_path, domain, backbone):
    run = make_run(tmp_path / "run", domain, backbone)
    with pytest.raises(Refusal, match="this run is running.*--resume"):
        export_run(run.path)
    run.end("stopped")
    with pytest.raises(Refusal, match="this run is stopped"):
        export_run(run.path)


def test_an_older_run_without_a_head_is_refused_with_the_command_that_makes_it_again(run, backbone, capsys):
    save_backbone(backbone, run.path)
    for command in (["export", str(run.path)], ["predict", str(run.path), "a.png"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "without its head" in said and "tljupyter report few_digits -p seed=0" in said
    assert load_backbone("", weights=run.path).weights_digest == backbone.weights_digest


def test_only_runs_are_exported_and_nothing_of_anybody_is_written_over(run, saved, tmp_path, capsys):
    assert main(["export", str(saved)]) == 2 and "not the folder of a run" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("")
    for out, match in (("mine", "thesis.txt"), ("file", "is a file"), ("run", "the run itself")):
        assert main(["export", str(run.path), "--no-onnx", "--out", str(tmp_path / out)]) == 2
        assert match in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (run.path / "model.safetensors").write_bytes(b"spoilt")
    assert main(["export", str(run.path), "--no-onnx", "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_an_export_is_renewed_whole(run, exported, tmp_path, capsys):
    out = shutil.copytree(exported, tmp_path / "out")
    assert main(["export", str(run.path), "--out", str(out), "--no-onnx"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert not (out / "model.onnx").exists() and "onnx" not in read_facts(out)
    assert "largest difference of a probability" in (out / "README.md").read_text()
    assert not list(tmp_path.glob(".export-*"))


def test_export_finds_a_run_by_its_name_and_answers_in_json(run, monkeypatch, capsys):
    monkeypatch.setenv("TLJUPYTER_RUNS_DIR", str(run.path.parent))
    monkeypatch.chdir("/")
    assert main(["export", "run", "--no-onnx", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["folder"] == str(run.path / "model") and answer["onnx"] is None
    assert answer["classes"] == list(NAMES) and answer["agrees_with_report"]["cases"] == 12


# The card


def test_the_card_carries_the_numbers_of_the_run(exported, finished):
    text = (exported / "README.md").read_text()
    results, recorded = finished.read("results.json"), finished.read("stamp.json")
    [row] = [row for row in results["comparisons"] if not row["exploratory"]]
    assert row["verdict"].removeprefix("no ") in text.replace("Transfer ", "").lower()
    [mean] = [
        one for one in results["arms"] if (one["arm"], one["metric"]) == ("linear probe", "balanced_accuracy")
    ]
    first, middle, low, high = (100 * n for n in (mean["values"][0], mean["mean"], mean["low"], mean["high"]))
    assert (
        f"| Balanced accuracy | first draw {first:.1f} %; mean of 3 draws {middle:.1f} % \\[{low:.1f}, {high:.1f}\\] |"
        in text
    )
    for wanted in (
        recorded["run"]["command"],
        next(iter(recorded["data"].values())),
        next(iter(recorded["weights"].values())),
        read_facts(exported)["digest"],
        "none (random weights)",
        "Nothing was found.",
        "seed: 0",
        "not known",
        "12 real cases",
    ):
        assert wanted in text


def test_hubs_can_read_the_front_matter(exported, finished):
    card = ModelCard((exported / "README.md").read_text())
    [mean] = [
        one
        for one in finished.read("results.json")["arms"]
        if (one["arm"], one["metric"]) == ("linear probe", "balanced_accuracy")
    ]
    assert card.data.license == "other" and card.data.pipeline_tag == "image-classification"
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["balanced_accuracy"] == mean["values"][0] and "overfitting_gap" not in scores
    assert card.data.eval_results[0].dataset_name == "digits <i>"


def test_names_cannot_act_as_markdown_or_html(exported):
    text, page = (exported / "README.md").read_text(), (exported / "card.html").read_text()
    body = text.split("---\n", 2)[2]
    for form in (body, page):
        assert (
            "<b>" not in form and "<i>" not in form and "&lt;b&gt;five&lt;/b&gt;" in form and "肺炎" in form
        )
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert rows and all(line.replace("\\|", "").count("|") == 3 and line.endswith("|") for line in rows)
    assert page.startswith("<!doctype html>") and 'charset="utf-8"' in page and "<script" not in page
    evil = "a\u2028b\x00c\u202e `x` [l](javascript:1) ![i](http://x) ***"
    escaped = in_markdown(evil)
    assert "\u202e" not in escaped and "\u2028" not in escaped and "://" not in escaped
    assert all(f"\\{mark}" in escaped for mark in "`[]*")


@pytest.mark.parametrize(
    ("verdict", "wanted"),
    [
        ("cannot tell", "◆ Cannot tell at 10 labels a class."),
        ("hurts", "▼ Transfer hurts at 10 labels a class."),
        ("helps", "▲ Transfer helps at 10 labels a class."),
        ("no difference that matters", "■ No difference that matters at 10 labels a class."),
    ],
)
def test_every_verdict_is_said_and_none_is_softened(verdict, wanted, run):
    results = run.read("results.json")
    [row] = [row for row in results["comparisons"] if not row["exploratory"]]
    row["verdict"], row["needed"] = verdict, "About 9 draws." if verdict == "cannot tell" else None
    run.write("results.json", results)
    text = model_card(run.path).markdown
    assert wanted in text
    assert ("It is not shown that the pretrained backbone helped" in text) == (verdict != "helps")
    assert ("About 9 draws." in text) == (verdict == "cannot tell")


def test_what_the_folder_does_not_hold_is_not_known(run, tmp_path):
    before = model_card(run.path).markdown.count("not known")
    for name in ("results.json", "stamp.json", "gate.json"):
        (run.path / name).unlink()
    after = model_card(run.path)
    assert after.markdown.count("not known") > before + 4
    assert "model-index" not in after.front and "The command that repeats it is not known." in after.markdown
    (run.path / "results.json").write_text("[]")
    with pytest.raises(Refusal, match="results.json"):
        model_card(run.path)


def test_folders_of_who_made_it_are_not_on_the_card(run):
    recorded = run.read("stamp.json")
    recorded["run"]["command"] = (
        "tljupyter report lung_xray -p 'data_dir=/home/jones/my films' -p weights=~/w/a.safetensors -p seed=0"
    )
    run.write("stamp.json", recorded)
    text = model_card(run.path).markdown
    assert "jones" not in text and "~/w" not in text
    assert "tljupyter report lung_xray -p 'data_dir=my films' -p weights=a.safetensors -p seed=0" in text


def test_what_was_said_about_calibration_and_subgroups_is_on_the_card(run):
    about = {
        "calibration": "50 out-of-fold cases",
        "subgroups": ["women: 80 % of 30", "men: <b>not known</b>"],
    }
    save_model(load_model(run.path), run.path, temperature=1.5, about=about)
    text = model_card(run.path).markdown
    assert (
        "| Temperature | scores are divided by 1.5 |" in text
        and "| Calibrated | 50 out-of-fold cases |" in text
    )
    assert "- women: 80 % of 30\n- men: &lt;b&gt;" in text and "holds no such table" not in text
    assert "were not calibrated" not in text


def test_findings_of_the_gate_are_on_the_card_without_names_of_files(run, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("ill", "well"):
        (tmp_path / "films" / label).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(
                tmp_path / "films" / label / f"patient_smith_{i}.png"
            )
    (tmp_path / "films" / "ill" / "patient_jones.png").write_text("not a picture")
    report = check(read_folder(tmp_path / "films"))
    run.write("gate.json", gate_facts(report))
    text = model_card(run.path).markdown
    assert "unreadable | 1 item; left out" in text and "jones" not in text
    found = {"kind": "group-across-splits", "severity": "stops", "items": 3}
    for allowed, wanted in ((["group-across-splits"], "let through by name"), ([], "mended")):
        run.write("gate.json", {"allowed": allowed, "repaired": not allowed, "findings": [found]})
        assert f"3 items; {wanted}" in model_card(run.path).markdown


# Files by the command line


def test_every_file_read_is_0(exported, files, capsys):
    assert main(["predict", str(exported), str(files), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    model = load_model(exported)
    paths = sorted(files.glob("*.png"))
    assert [row["file"] for row in answer["predictions"]] == [str(path) for path in paths]
    chances = np.array([[row["probabilities"][name] for name in NAMES] for row in answer["predictions"]])
    assert np.abs(chances - model.predict_proba(paths)).max() < 1e-9
    assert [row["predicted"] for row in answer["predictions"]] == model.predict(paths).tolist()
    assert answer["classes"] == list(NAMES) and not answer["unreadable"]


def test_an_unreadable_file_among_good_ones_is_1_and_the_others_are_answered(
    exported, files, tmp_path, capsys
):
    folder = shutil.copytree(files, tmp_path / "some")
    (folder / "07.png").write_text("not a picture")
    assert (
        main(["predict", str(exported), str(folder / "0?.png"), "no.png", "--csv", "--batch-size", "4"]) == 1
    )
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [Path(row["file"]).name for row in rows] == [f"0{i}.png" for i in range(10)] + ["no.png"]
    assert [i for i, row in enumerate(rows) if not row["predicted"]] == [7, 10]
    assert "2 of 11 files cannot be read" in said.err and "07.png: not an image" in said.err
    wanted = load_model(exported).predict_proba(sorted(files.glob("0?.png")))
    read = [row for row in rows if row["predicted"]]
    assert np.allclose([float(row[f"p({NAMES[1]})"]) for row in read], np.delete(wanted, 7, 0)[:, 1])
    assert main(["predict", str(exported), str(folder), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"]) == 39 and answer["unreadable"][0]["file"].endswith("07.png")


def test_nothing_read_and_bad_input_are_2(exported, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for given, match in (
        ([str(exported), "no.png"], "no such file"),
        ([str(exported), str(tmp_path / "empty")], "no images in this folder"),
        ([str(exported), str(tmp_path / "*.png")], "no file matches"),
        ([str(tmp_path), "no.png"], "no model here"),
        ([str(exported), "no.png", "--json", "--csv"], "choose one"),
        ([str(exported), "no.png", "--batch-size", "0"], "batch_size = 0"),
        ([str(exported)], "FILES"),
    ):
        assert main(["predict", *given]) == 2
        assert match in capsys.readouterr().err


def test_files_are_decoded_a_few_batches_ahead_and_no_further(exported, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "many")
    found = predict_files(load_model(exported), [folder], batch_size=4)
    first = next(found)
    (folder / "39.png").unlink()  # gone before its turn: it cannot have been decoded yet
    rest = list(found)
    assert first.predicted is not None and len(rest) == 39
    assert [one.file for one in rest if one.predicted is None] == [str(folder / "39.png")]


@pytest.mark.slow
def test_a_process_of_its_own_prints_a_line_a_file(exported, files):
    command = [sys.executable, "-m", "tljupyter", "predict", str(exported), str(files / "00.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    predicted, chance, file = line.split("\t")
    assert predicted in ("<b>five</b>", NAMES[1]) and chance.endswith("%") and file == str(files / "00.png")
