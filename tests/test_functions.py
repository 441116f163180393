"""Models from elsewhere as frozen backbones: the same numbers as where they come from, and clear words where they cannot serve."""

import json
import os

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tljupyter.backbones.functions import function_backbone, load_keras, load_onnx
from tljupyter.backbones.inputs import InputSpec
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.readers import read_arrays, read_images
from tljupyter.features.boundary import boundary_engine
from tljupyter.features.cache import FeatureCache
from tljupyter.refusals import Refusal
from tljupyter.transfer.inputs import Reading
from tljupyter.transfer.probe import LinearProbe, stage_features

os.environ.setdefault("KERAS_BACKEND", "torch")
PLAIN = InputSpec((32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def moments(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images.mean((2, 3)), images.std((2, 3))], axis=1)


def squares(n: int = 24):
    "Light and dark squares."
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    pixels = rng.integers(0, 100, (n, 32, 32, 3)) + 120 * labels[:, None, None, None]
    return read_arrays(pixels.astype(np.uint8), ["light" if label else "dark" for label in labels])


def test_a_function_is_probed_and_cached_like_any_backbone(tmp_path):
    calls = []

    def counted(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return moments(images)

    domain, cache = squares(), FeatureCache(tmp_path, 10**9)
    backbone = function_backbone(counted, "moments", PLAIN, version="1")
    rows = stage_features(backbone, domain.items, reading=Reading(cache))
    expected = moments(np.stack([PLAIN(domain.items[i]) for i in range(len(domain))]))
    assert np.allclose(rows, expected, atol=1e-5)
    calls.clear()
    assert np.array_equal(stage_features(backbone, domain.items, reading=Reading(cache)), rows) and not calls
    other = function_backbone(counted, "moments", PLAIN, version="2")
    stage_features(other, domain.items, reading=Reading(cache))
    assert sum(calls) > len(domain)
    few = domain.take(np.arange(8))
    assert (LinearProbe(backbone, reading=Reading(cache)).fit(few).predict(domain) == domain.labels).all()


def test_no_engine_but_the_plain_one_is_tried(tmp_path):
    backbone = function_backbone(moments, "moments", PLAIN, version="1")
    chosen = boundary_engine(backbone, 1, 100, FeatureCache(tmp_path, 10**9))
    assert chosen.engine == "eager"


def test_a_function_cannot_be_trained_from_scratch_and_copies_share_it():
    backbone = function_backbone(moments, "moments", PLAIN, version="1")
    with pytest.raises(Refusal, match="no from-scratch twin and cannot be fine-tuned"):
        backbone.reset(0)
    assert backbone.copy().stages[0].module is backbone.stages[0].module


@pytest.mark.parametrize("wrong", [lambda x: x.mean(), lambda x: x[:, 0, 0], lambda x: x.mean((1, 2, 3))])
def test_a_function_that_gives_no_vector_an_image_is_refused(wrong):
    def function(images: np.ndarray) -> np.ndarray:
        return wrong(np.repeat(images, 2, 0))

    with pytest.raises(Refusal, match="one vector an image is needed"):
        function_backbone(function, "wrong", PLAIN, version="1")


# ONNX


def exported(folder, module, images):
    path = folder / "model.onnx"
    shapes = ({0: torch.export.Dim("n")},)
    torch.onnx.export(module.eval(), (images,), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    return path


@pytest.mark.slow
def test_real_weights_by_way_of_onnx_give_the_same_features(tmp_path, data_dir):
    weights = data_dir / "weights_small_pretrained" / "squeezenet1_0_imagenet.safetensors"
    backbone = load_backbone("squeezenet1_0", weights)
    domain = read_images(data_dir / "natural_ants_bees").take(np.arange(6))
    path = exported(tmp_path, backbone.module, torch.randn(2, 3, *backbone.input.size))
    foreign = load_onnx(path, backbone.input)
    rows = [stage_features(one, domain.items, reading=Reading(engine="eager")) for one in (backbone, foreign)]
    assert rows[0].shape == rows[1].shape == (6, 512) and np.abs(rows[0] - rows[1]).max() < 1e-3


@pytest.mark.slow
def test_channels_may_stand_last_and_maps_are_averaged(tmp_path):
    class Maps(torch.nn.Module):
        def forward(self, images):  # (n, h, w, 3) -> (n, h, w, 2)
            return torch.stack([images[..., 0], images[..., 1] + images[..., 2]], -1)

    path = exported(tmp_path, Maps(), torch.randn(2, 8, 8, 3))
    path.with_suffix(".json").write_text(json.dumps({"input_size": [8, 8]}))
    found = load_onnx(path)
    images = torch.randn(4, 3, 8, 8)
    expected = torch.stack([images[:, 0], images[:, 1] + images[:, 2]], 1).mean((2, 3))
    assert torch.allclose(found.module(images), expected, atol=1e-5)
    with pytest.raises(Refusal, match='no output "pool"; it has'):
        load_onnx(path, output="pool")


def test_onnx_files_that_cannot_serve(tmp_path):
    with pytest.raises(Refusal, match="there is no such file"):
        load_onnx(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(Refusal, match="Write model.json beside it"):
        load_onnx(tmp_path / "model.onnx")
    with pytest.raises(Refusal, match="onnxruntime cannot read it"):
        load_onnx(tmp_path / "model.onnx", PLAIN)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(Refusal, match="not an input specification"):
        load_onnx(tmp_path / "model.onnx")


# Keras


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_published_keras_model_gives_the_features_before_its_classifier(data_dir):
    import keras

    path = data_dir / "weights_small_pretrained" / "vww_96.h5"
    spec = InputSpec((96, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    backbone = load_keras(path, spec, licence="Apache-2.0")
    images = torch.rand(5, 3, 96, 96)
    rows = backbone.module(images).numpy()
    assert backbone.features == 256 and rows.shape == (5, 256)
    with h5py.File(path) as file:  # the classifier by hand, on our features, against the model's own answer
        names = []
        file["model_weights"].visit(names.append)
        kernel, bias = (
            next(
                file["model_weights"][name][()]
                for name in names
                if name.startswith("dense/") and name.endswith(end)
            )
            for end in ("kernel:0", "bias:0")
        )
    logits = rows @ kernel + bias
    by_hand = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(load_keras(path, spec, "dense").module(images).numpy(), by_hand, atol=1e-4)
    assert keras.backend.backend() == "torch"
    domain = read_images(data_dir / "lung_kermany_pediatric")
    drawn = np.random.default_rng(0).permutation(len(domain))
    few, rest = domain.take(drawn[:80]), domain.take(drawn[80:200])
    share = (LinearProbe(backbone).fit(few).predict(rest) == rest.labels).mean()
    assert share > 0.7, share
    with pytest.raises(Refusal, match='no layer "pooling"; it has'):
        load_keras(path, spec, "pooling")


@pytest.mark.slow
def test_code_in_keras_files_is_not_run(tmp_path):
    import keras

    model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x * 2)])
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        with pytest.raises(Refusal, match="has a Lambda layer, which is code"):
            load_keras(tmp_path / name, PLAIN)


@pytest.mark.slow
def test_keras_files_that_cannot_serve(tmp_path):
    import keras

    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    with pytest.raises(Refusal, match=r"neither a .keras nor an .h5 file"):
        load_keras(tmp_path / "broken.h5", PLAIN)
    keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(3), keras.layers.Dense(2)]).save(
        tmp_path / "rows.keras"
    )
    with pytest.raises(Refusal, match="images .* are needed"):
        load_keras(tmp_path / "rows.keras", PLAIN)


def test_pictures_in_any_form_reach_a_function():
    seen = []

    def look(images: np.ndarray) -> np.ndarray:
        seen.append(images.shape)
        return moments(images)

    backbone = function_backbone(look, "moments", PLAIN, version="1")
    grey = backbone.input(Image.new("L", (50, 20), 128))
    assert (
        grey.shape == (3, 32, 32)
        and np.isclose(grey, 128 / 255, atol=0.01).all()
        and seen == [(1, 3, 32, 32)]
    )
