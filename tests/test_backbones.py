"""One contract over many networks; weights from files good and bad; no network, and never a wait for one."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tljupyter.backbones.inputs import InputSpec
from tljupyter.backbones.published import published, resolve
from tljupyter.backbones.registry import Backbone, build, list_backbones, random_backbone, state_digest
from tljupyter.backbones.small import SMALL_NETWORKS
from tljupyter.backbones.stages import cut, normalisations, trace
from tljupyter.backbones.weights import answers, load_backbone, read_weights, save_backbone
from tljupyter.refusals import MismatchedWeights, MissingWeights, Refusal
from tljupyter.settings import load_settings

slow = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Small arrays in many networks: more threads only wait for each other."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# name, side of the image, a few of its stages
NETWORKS = [
    ("resnet18", 64, ["stem", "layer1", "layer2", "layer3", "layer4", "pool"]),
    ("resnet50", 64, ["stem", "layer1", "layer2", "layer3", "layer4", "pool"]),
    ("squeezenet1_0", 64, ["stem", "features.3", "features.12", "pool"]),
    ("densenet121", 64, ["stem", "features.denseblock1", "features.transition1", "pool"]),
    ("mobilenet_v3_small", 64, ["stem", "features.1", "pool", "classifier"]),
    ("efficientnet_b0", 64, ["stem", "features.1", "features.8", "pool"]),
    ("convnext_tiny", 64, ["stem", "features.1", "features.7", "pool"]),
    ("regnet_y_400mf", 64, ["stem", "trunk_output.block1", "trunk_output.block4", "pool"]),
    ("shufflenet_v2_x0_5", 64, ["stem", "stage2", "stage4", "conv5", "pool"]),
    ("googlenet", 64, ["stem", "inception3a", "inception5b", "pool"]),
    ("swin_t", 64, ["stem", "features.1", "features.7", "pool"]),
    ("timm/resnet18", 64, ["stem", "layer1", "layer4", "pool"]),
    ("timm/efficientnet_b0", 64, ["stem", "blocks.0", "blocks.6", "conv_head", "pool"]),
    ("convnext_atto", 64, ["stem", "stages.0", "stages.3", "pool"]),
    ("mobilenetv4_conv_small", 64, ["stem", "blocks.0", "blocks.3"]),
    ("vit_tiny_patch16_224", 64, ["stem", "blocks.0", "blocks.11"]),
    (
        "eva02_tiny_patch14_224",
        56,
        ["stem", "blocks.0", "blocks.11", "pool"],
    ),  # constants shared by all blocks
    ("swin_tiny_patch4_window7_224", 64, ["stem", "layers.0", "layers.3"]),
    ("resnet20_cifar", 32, ["stem", "layer1", "layer2", "layer3", "pool"]),
    ("small_groupnorm", 64, ["stem", "block2", "block3", "block4", "pool"]),
    ("digits_convnet", 8, ["stem", "block2", "block3", "pool"]),
    pytest.param("vgg11", 64, ["stem", "features.3", "pool", "classifier.0", "classifier.3"], marks=slow),
    pytest.param(
        "vit_b_16",
        224,
        ["stem", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"],
        marks=slow,
    ),
]


def whole(name: str, side: int, seed: int = 0) -> nn.Module:
    "The library's own network without head, with statistics that are not the trivial ones."
    network, _ = build(name, seed)
    if hasattr(network, "set_input_size") and side != published(name).input.size[0]:
        network.set_input_size(img_size=(side, side))
    generator = torch.Generator().manual_seed(seed)
    for layer in normalisations(network):
        layer.running_mean.normal_(0, 0.1, generator=generator)
        layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def picture(name: str, side: int, count: int = 2) -> torch.Tensor:
    depth = published(name).input.depth
    return torch.rand(count, depth, side, side, generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = b.abs().max()
    return bool(scale > 0) and bool((a - b).abs().max() <= 1e-5 * scale.clamp(min=1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "some_stages"), NETWORKS)
def test_stages_in_a_row_are_the_network(name, side, some_stages):
    network = whole(name, side)
    spec = published(name).input.at(side)
    stages = cut(network)
    backbone = Backbone(name, stages, spec, "test", "", "")
    images = picture(name, side)
    with torch.no_grad():
        expected = network(images)
        values = [images]
        for stage in stages:
            values.append(stage.module(values[-1]))
        assert close(values[-1], expected)
        for boundary in range(len(stages) + 1):
            assert torch.equal(backbone.suffix(boundary)(values[boundary]), values[-1])
        half = len(stages) // 2
        assert torch.equal(backbone.prefix(half)(images), values[half])
    assert backbone.shapes == tuple(tuple(value.shape[1:]) for value in values[1:])
    assert expected.shape == (2, backbone.features)

    assert len(set(backbone.stage_names)) == len(stages)
    assert [name for name in backbone.stage_names if name in some_stages] == some_stages
    assert backbone.stage_names[0] == "stem"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "some_stages"), NETWORKS)
def test_every_parameter_is_in_one_stage_under_its_own_name(name, side, some_stages):
    network = whole(name, side)
    backbone = Backbone(name, cut(network), published(name).input.at(side), "test", "", "")
    auxiliary = ("aux1.", "aux2.")  # of GoogLeNet: they serve pretraining only
    own = {n: p for n, p in network.named_parameters() if not n.startswith(auxiliary)}
    found = [(n, p) for stage in backbone.stages for n, p in stage.module.named_parameters()]
    assert sorted(n for n, _ in found) == sorted(own)
    assert all(p is own[n] for n, p in found)
    assert {p for s in backbone.stage_names for p in backbone.parameters_of(s)} == set(own.values())

    state = {n: v for n, v in network.state_dict().items() if not n.startswith(auxiliary)}
    assert set(backbone.state_dict()) == set(state)
    assert backbone.weights_digest == state_digest(state)


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_t", "timm/efficientnet_b0", "digits_convnet"])
def test_training_mode_still_matters(name):
    side = published(name).input.at(64).size[0] if name != "digits_convnet" else 8
    network, images = whole(name, side).train(), picture(name, side, 4)
    torch.manual_seed(0)
    expected = network(images)
    stages = cut(network)  # leaves the network in evaluation mode
    for stage in stages:
        stage.module.train()
    torch.manual_seed(0)
    value = images
    for stage in stages:
        value = stage.module(value)
    assert close(value, expected)
    assert not close(network.eval()(images), expected)


def test_moving_statistics_are_told_from_fixed_ones():
    def moving(name: str) -> set[bool]:
        return {stage.moving_statistics for stage in random_backbone(name).stages if stage.parameters}

    assert moving("resnet20_cifar") == moving("digits_convnet") == moving("resnet18") == {True}
    assert moving("squeezenet1_0") == moving("small_groupnorm") == moving("convnext_atto") == {False}
    frozen = torchvision.ops.FrozenBatchNorm2d(4)  # has running statistics that never move
    assert not list(normalisations(frozen)) and list(normalisations(nn.BatchNorm1d(4)))
    assert not list(normalisations(nn.BatchNorm2d(4, track_running_stats=False)))


class Branching(nn.Module):
    "Decides by the values of the data, which no trace can follow."

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else self.b(x)


class Tied(nn.Module):
    "Uses one layer at the start and at the end: no cut between the two uses may be made."

    def __init__(self):
        super().__init__()
        self.twice, self.between, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x, scale=None):
        return self.last(self.twice(self.between(self.twice(x))))


class Bypassed(nn.Module):
    "Adds the output of the first layer to the third: only one value may be alive at a cut."

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.one(x)
        return self.four(x + self.three(self.two(x)))


def test_where_cuts_are_impossible():
    with pytest.raises(Refusal, match="Branching cannot be cut into stages"):
        trace(Branching())
    assert [s.name for s in cut(Tied())] == ["stem", "last"]
    assert [s.name for s in cut(Bypassed())] == ["stem", "two", "four"]
    network, x = Bypassed(), torch.rand(3, 4)
    value = x
    for stage in cut(network):
        value = stage.module(value)
    assert torch.allclose(value, network(x))


def test_a_listed_network_that_cannot_be_cut_says_so():
    with pytest.raises(Refusal, match="cannot be cut into stages"):
        random_backbone("crossvit_tiny_240")


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "squeezenet1_0", "swin_t"])
@pytest.mark.parametrize("shape", [(300, 200), (97, 401), (224, 224)])
def test_input_is_that_of_torchvision(name, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()(image).numpy()
    ours = published(name).input(image)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_input_takes_every_mode(mode):
    image = Image.new("RGB", (40, 30), (200, 100, 50)).convert(mode)
    colour, grey = InputSpec((20, 20)), InputSpec((20, 20), mean=(0.5,), std=(0.5,), channels="L")
    assert colour(image).shape == (3, 20, 20) and grey(image).shape == (1, 20, 20)
    assert np.isfinite(colour(image)).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"input_size": [0, 10]}, "input_size"),
        ({"input_size": None}, "input_size"),
        ({"channels": "RGBA"}, "channels"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"resize": 5}, "resize"),
        ({"value_range": [0, 2]}, "value_range"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"std": [1, 1, 0]}, "std"),
        ({"scale": "0..65535"}, "scale"),
    ],
)
def test_wrong_input_specifications_are_refused_by_name(change, word):
    values = InputSpec((10, 10)).to_dict() | change
    if "scale" in change:
        del values["value_range"]
    with pytest.raises(Refusal, match=word):
        InputSpec.from_dict(values)


def test_input_specification_survives_json_and_its_digest_tells_differences():
    spec = InputSpec((24, 32), 40, "bicubic", (0, 255), (1, 2, 3), (1, 1, 2), "BGR")
    again = InputSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and again.digest == spec.digest
    changes: list[dict] = [
        {"size": (24, 33)},
        {"resize": 41},
        {"interpolation": "nearest"},
        {"channels": "RGB"},
    ]
    changes += [{"value_range": (0, 1)}, {"mean": (1, 2, 4)}, {"std": (1, 1, 1)}]
    assert len({dataclasses.replace(spec, **change).digest for change in changes} | {spec.digest}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alexnet", "squeezenet1_0", "squeezenet1_1", "densenet121", "vgg11", "inception_v3"]
)
def test_smallest_size_is_the_one_torchvision_publishes(name):
    smallest = torchvision.models.get_model_weights(name).DEFAULT.meta["min_size"][0]
    assert load_backbone(name, "random", smallest).input.size == (smallest, smallest)
    with pytest.raises(Refusal, match=f"smallest that works is {smallest} x {smallest}"):
        load_backbone(name, "random", smallest - 1)


@pytest.mark.slow
def test_sizes_of_transformers():
    assert load_backbone("vit_tiny_patch16_224", "random", (96, 64)).features == 192
    with pytest.raises(Refusal, match="vit_tiny_patch16_224 cannot .*8 x 8"):
        load_backbone("vit_tiny_patch16_224", "random", 8)
    with pytest.raises(Refusal, match="smallest that works is 224 x 224"):
        load_backbone("vit_b_16", "random", 96)


# --- registry --------------------------------------------------------------------------------------------------------


def test_the_list_is_complete_and_quick():
    start = time.perf_counter()
    infos = list_backbones()
    assert time.perf_counter() - start < 2
    names = [info.name for info in infos]
    assert set(SMALL_NETWORKS) <= set(names) and len(infos) > 80 and len(set(names)) == len(names)
    by_name = {info.name: info for info in infos}
    squeezenet = by_name["squeezenet1_0"]
    assert (squeezenet.parameters, squeezenet.input_size) == (1_248_424, (224, 224))
    assert squeezenet.trained_on == "ImageNet-1k" and squeezenet.licence == "unknown"
    assert all(info.parameters and min(info.input_size) >= 8 for info in infos)
    swag = by_name["vit_h_14"]
    assert "SWAG" in swag.trained_on and "SWAG" in swag.licence  # the one licence that torchvision states


def test_timm_by_pattern_and_by_library():
    assert {i.library for i in list_backbones()} == {"tljupyter", "torchvision"}
    found = {i.name: i for i in list_backbones("*resnet18")}
    assert found["resnet18"].library == "torchvision" and found["timm/resnet18"].library == "timm"
    assert found["timm/resnet18"].licence == "apache-2.0"
    everything = list_backbones(library="timm")
    assert len(everything) > 1000 and all(resolve(i.name)[0] == "timm" for i in everything[::50])
    assert list_backbones("no such thing") == []


def test_names():
    assert resolve("torchvision/resnet18") == ("torchvision", "resnet18")
    assert resolve("timm/resnet18.a1_in1k") == ("timm", "resnet18.a1_in1k")
    with pytest.raises(Refusal, match='Did you mean "squeezenet1_0"'):
        load_backbone("squeezenet1.0")
    with pytest.raises(Refusal, match="no weights tagged"):
        load_backbone("timm/resnet18.no_such_tag")


def test_weights_on_this_machine_are_seen(tmp_path, monkeypatch):
    settings = load_settings({"weights_dir": tmp_path})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def here(name: str) -> bool:
        return next(i.weights_here for i in list_backbones(name, settings=settings) if i.name == name)

    assert not here("resnet20_cifar") and not here("resnet18") and not here("timm/resnet18")
    save_file(build("resnet20_cifar")[0].state_dict(), tmp_path / "resnet20_cifar.safetensors")
    cached = published("resnet18").cached
    cached.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), cached)
    assert here("resnet20_cifar") and here("resnet18")
    assert load_backbone("resnet20_cifar", settings=settings).weights_source.endswith(
        "resnet20_cifar.safetensors"
    )
    hub = load_backbone("resnet18", settings=settings)
    assert hub.weights_source.startswith("https://") and hub.trained_on == "ImageNet-1k"
    assert torch.equal(hub.state_dict()["conv1.weight"], torch.load(cached)["conv1.weight"])


# --- backbone --------------------------------------------------------------------------------------------------------


def test_copy_reset_and_digest():
    backbone = load_backbone("resnet20_cifar", "random", seed=1)
    twin, other = backbone.copy(), backbone.reset(seed=2)
    assert twin.weights_digest == backbone.weights_digest == backbone.reset(seed=1).weights_digest
    assert other.weights_digest != backbone.weights_digest and other.stage_names == backbone.stage_names
    before = [backbone.digest(b) for b in range(6)]
    assert len(set(before[:5])) == 5
    with torch.no_grad():
        backbone.parameters_of("layer2")[0].add_(1)
    after = [backbone.digest(b) for b in range(6)]
    assert before[:3] == after[:3] and all(a != b for a, b in zip(before[3:], after[3:], strict=True))
    assert twin.weights_digest == before[-1]


def test_random_weights_leave_the_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_backbone("digits_convnet", "random", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_boundaries_and_stage_names_are_checked():
    backbone = load_backbone("digits_convnet", "random")
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(backbone.prefix(0)(images), images)
    assert torch.equal(backbone.suffix(len(backbone.stages))(images), images)
    assert not backbone.prefix(2).training
    for boundary in (-1, 5):
        with pytest.raises(Refusal, match="has 4 stages"):
            backbone.prefix(boundary)
    with pytest.raises(Refusal, match='Did you mean "block2"'):
        backbone.parameters_of("block_2")


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def resnet20(tmp_path) -> Path:
    "A good weights file, with a head for ten classes."
    state = build("resnet20_cifar", seed=5)[0].state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(state | {"linear.weight": torch.rand(10, 64), "linear.bias": torch.rand(10)}, path)
    return path


def test_a_file_gives_its_weights_and_its_head_is_left_out(resnet20):
    expected = build("resnet20_cifar", seed=5)[0].state_dict()
    backbone = load_backbone("resnet20_cifar", resnet20)
    assert backbone.weights_digest == state_digest(expected)
    assert (backbone.licence, backbone.trained_on) == ("unknown", "unknown")
    again = load_backbone("resnet20_cifar", str(resnet20))
    assert again.weights_digest == backbone.weights_digest


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".npz"])
def test_other_kinds_of_files_and_wrappers(resnet20, tmp_path, suffix):
    state = read_weights(resnet20)
    older = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / f"other{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in older.items()})
    else:
        parallel = {f"module.{name}": value for name, value in older.items()}
        torch.save({"state_dict": parallel, "epoch": 3}, path)
    assert (
        load_backbone("resnet20_cifar", path).weights_digest
        == load_backbone("resnet20_cifar", resnet20).weights_digest
    )


class RunsCode:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, new_format):
    ran, path = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({"conv1.weight": RunsCode(ran)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(MismatchedWeights, match="could run code.*safetensors"):
        load_backbone("resnet20_cifar", path)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # the file does what it threatens to
    assert ran.exists()


def test_another_architecture_is_refused_by_name(tmp_path, resnet20):
    path = tmp_path / "other.safetensors"
    save_file(build("resnet18")[0].state_dict(), path)
    with pytest.raises(MismatchedWeights, match=r"other.safetensors.*Missing: .*layer1\.2\.conv1\.weight"):
        load_backbone("resnet20_cifar", path)
    with pytest.raises(MismatchedWeights, match="Unexpected: layer1.2"):
        load_backbone("resnet18", resnet20)
    state = read_weights(resnet20) | {"conv1.weight": torch.rand(16, 1, 3, 3)}
    save_file(state, path)
    with pytest.raises(
        MismatchedWeights, match=r"Other shape: conv1\.weight is \(16, 1, 3, 3\), not \(16, 3, 3, 3\)"
    ):
        load_backbone("resnet20_cifar", path)


def test_the_json_beside_the_weights_rules(resnet20):
    beside = resnet20.with_suffix(".json")
    spec = InputSpec((48, 48), mean=(0, 0, 0), std=(1, 1, 1))
    about = {
        "architecture": "tljupyter resnet20_cifar",
        "licence": "MIT",
        "trained_on": "toys",
    } | spec.to_dict()
    beside.write_text(json.dumps(about))
    for name in ("", "resnet20_cifar"):
        backbone = load_backbone(name, resnet20)
        assert (backbone.name, backbone.input) == ("resnet20_cifar", spec)
        assert (backbone.licence, backbone.trained_on) == ("MIT", "toys")
    assert load_backbone("", resnet20, input_size=40).input == spec.at(40)
    with pytest.raises(MismatchedWeights, match="weights of resnet20_cifar .*not of resnet18"):
        load_backbone("resnet18", resnet20)
    beside.write_text(json.dumps(about | {"std": [0, 1, 1]}))
    with pytest.raises(Refusal, match=r"weights\.json.*std"):
        load_backbone("", resnet20)
    beside.write_text("{not json")
    with pytest.raises(Refusal, match=r"weights\.json.*JSON"):
        load_backbone("", resnet20)
    beside.unlink()
    with pytest.raises(Refusal, match="which network is it"):
        load_backbone("", resnet20)


def test_files_that_are_not_weights(tmp_path, resnet20):
    with pytest.raises(MissingWeights, match="nothing.safetensors"):
        load_backbone("resnet20_cifar", tmp_path / "nothing.safetensors")
    with pytest.raises(MissingWeights, match="model.safetensors"):
        load_backbone("resnet20_cifar", tmp_path)
    for name, content in (
        ("cut.safetensors", resnet20.read_bytes()[:5000]),
        ("text.safetensors", b"these are not weights, only words"),
        ("text.pth", b"these are not weights, only words"),
        ("text.npz", b"these are not weights, only words"),
        ("empty.pth", b""),
        ("weights.h5", b"HDF"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MismatchedWeights, match=name):
            load_backbone("resnet20_cifar", tmp_path / name)
    torch.save([torch.rand(3)], tmp_path / "list.pth")
    with pytest.raises(MismatchedWeights, match="holds no state dict"):
        load_backbone("resnet20_cifar", tmp_path / "list.pth")


def test_weights_are_found_in_the_weights_folder(resnet20):
    settings = load_settings({"weights_dir": resnet20.parent})
    assert load_backbone("resnet20_cifar", resnet20.name, settings=settings).weights_source == str(resnet20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "digits_convnet", "vit_tiny_patch16_224", "timm/resnet18", "googlenet"]
)
def test_saved_and_loaded_again(tmp_path, name):
    side = {"digits_convnet": 8}.get(name, 64)
    backbone = dataclasses.replace(
        load_backbone(name, "random", side, seed=4), licence="CC0", trained_on="toys"
    )
    save_backbone(backbone, tmp_path / "a" / "run")
    again = load_backbone("", tmp_path / "a" / "run")
    assert again.weights_digest == backbone.weights_digest and again.input == backbone.input
    assert (again.name, again.licence, again.trained_on) == (name, "CC0", "toys")
    images = picture(name, side)
    with torch.no_grad():
        assert torch.equal(again.module(images), backbone.module(images))
    assert load_backbone(name, tmp_path / "a" / "run", input_size=side * 2).input.size == (side * 2, side * 2)


def test_saved_weights_that_were_changed_are_refused(tmp_path):
    backbone = load_backbone("digits_convnet", "random")
    save_backbone(backbone, tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    state["block1.0.weight"][0, 0, 0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MismatchedWeights, match="digest"):
        load_backbone("", tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Refusal, match="cannot be written"):
        save_backbone(load_backbone("digits_convnet", "random"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


# --- no network ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["refused", "silent"])
def no_network(request, tmp_path, monkeypatch):
    "Every request goes to a proxy that refuses connections, or accepts them and never says a word."
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refused":
            server.close()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setenv("TLJUPYTER_WEIGHTS_DIR", str(tmp_path / "weights"))
        yield


@pytest.mark.slow
def test_without_a_network_the_error_comes_at_once(no_network):
    for name in ("resnet50", "legacy_seresnet18"):
        start = time.perf_counter()
        with pytest.raises(MissingWeights, match=rf"{name}.*weights=PATH\.safetensors.*{name}\.safetensors"):
            load_backbone(name)
        assert time.perf_counter() - start < 3


def test_networks_without_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJUPYTER_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(MissingWeights, match="small_groupnorm: no hub publishes"):
        load_backbone("small_groupnorm")


def test_an_answer_of_any_kind_counts_as_reached():
    assert not answers("http://127.0.0.1:9/", seconds=0.5)
    assert not answers("not a url", seconds=0.5)


OFFLINE_TIMM = """
import sys, time, torch
from tljupyter.backbones.weights import load_backbone
from tljupyter.refusals import MissingWeights

start = time.perf_counter()
try:
    load_backbone("resnet14t", input_size=64)
except MissingWeights as error:
    assert "resnet14t" in str(error) and "weights=" in str(error), error
else:
    raise SystemExit("resnet14t was loaded without a network")
assert time.perf_counter() - start < 3.5, "waited for a hub that does not answer"

backbone = load_backbone("resnet10t", input_size=64)
assert backbone.weights_source.startswith("https://"), backbone
print(backbone.weights_digest)
"""


@slow
def test_timm_without_a_network_uses_what_was_downloaded(no_network, tmp_path):
    model = timm.create_model("resnet10t", pretrained=False)
    repository = timm.get_pretrained_cfg("resnet10t").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / "hf" / "hub" / f"models--{repository}" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123abcd")
    environ = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    environ.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE_TIMM], capture_output=True, text=True, env=environ, timeout=200
    )
    assert done.returncode == 0, done.stderr
    headless = {n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}
    assert done.stdout.split()[-1] == state_digest(headless)


# --- real weights ----------------------------------------------------------------------------------------------------


def test_resnet20_for_cifar_is_right(data_dir):
    folder = data_dir / "weights_small_pretrained"
    backbone = load_backbone("resnet20_cifar", folder / "resnet20_cifar10.npz")
    script = load_backbone("resnet20_cifar", folder / "resnet20-12fca82f.th")
    assert script.weights_digest == backbone.weights_digest
    head = read_weights(folder / "resnet20_cifar10.npz")
    with np.load(data_dir / "natural_cifar10" / "cifar10_subset.npz") as cifar:
        images, labels = cifar["x_test"][:300], cifar["y_test"][:300]
    arrays = torch.from_numpy(np.stack([backbone.input(Image.fromarray(image)) for image in images]))
    with torch.no_grad():
        scores = backbone.module(arrays) @ head["linear.weight"].T + head["linear.bias"]
    accuracy = (scores.argmax(1).numpy() == labels).mean()
    assert accuracy == pytest.approx(0.827, abs=0.01)  # as the data's own README measured it


@pytest.mark.slow
def test_squeezenet_for_imagenet_is_right(data_dir):
    path = data_dir / "weights_small_pretrained" / "squeezenet1_0_imagenet.safetensors"
    backbone = load_backbone("squeezenet1_0", path)
    assert backbone.name == load_backbone("", path).name == "squeezenet1_0"
    assert backbone.input.size == (227, 227) and backbone.input.value_range == (0, 1)
    assert backbone.licence.startswith("BSD-2") and backbone.trained_on == "ImageNet-1k"
    assert backbone.features == 512 and backbone.parameters == 735_424
    head, folder = read_weights(path), data_dir / "natural_imagenet_1000"
    table = pd.read_csv(folder / "labels.csv").iloc[::20]
    files = [next(folder.rglob(Path(file).name)) for file in table.file]
    arrays = torch.from_numpy(np.stack([backbone.input(Image.open(file)) for file in files]))
    with torch.no_grad():
        maps = backbone.prefix(len(backbone.stages) - 1)(arrays)
        weight, bias = head["classifier.1.weight"], head["classifier.1.bias"]
        scores = torch.relu(nn.functional.conv2d(maps, weight, bias, padding=1)).mean((2, 3))
    top_five = (scores.topk(5).indices.numpy() == table["index"].to_numpy()[:, None]).any(1).mean()
    assert top_five > 0.7
