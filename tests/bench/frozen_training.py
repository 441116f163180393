"""Training a head on a frozen ResNet-18, for some epochs: ours against two known loops and one forward pass.

Random weights (they cost the same), no augmentation, same files, batch size and threads. Reading and decoding of files
is inside every figure; imports, the making of networks and a batch to warm up are outside.
"""

import tempfile
from pathlib import Path

from tests.bench import Options, Row, rivals
from tests.bench.images import make_images
from tests.bench.ours import engine_choice, frozen_training, network
from tljupyter.features.cache import FeatureCache


def measure(options: Options) -> list[Row]:
    backbone = network(options)
    with tempfile.TemporaryDirectory() as made:
        images = make_images(Path(made) / "images", options.images)
        few = make_images(Path(made) / "few", options.batch_size)
        rivals.one_pass(few, options)
        frozen_training(backbone, few, FeatureCache(Path(made) / "warm"), options)
        one_pass = rivals.one_pass(images, options)
        ours = frozen_training(backbone, images, FeatureCache(Path(made) / "eager"), options)
        cache = FeatureCache(Path(made) / "compiled")
        engine = engine_choice(backbone, cache, options).engine
        compiled = frozen_training(backbone, images, cache, options, engine)
        tutorial = rivals.tutorial(images, options)
        fastai = rivals.fastai(images, options)
    rows = [
        Row(
            "one eager pass, channels last",
            one_pass,
            "s",
            note=f"{options.images} images at {options.size} px",
        ),
        Row(
            "ours",
            ours,
            "s",
            note=f"engine eager, cache empty; stands for any number of epochs, here {options.epochs}",
        ),
        Row(
            "ours, compiled", compiled, "s", note=f"engine {engine}, exported by an earlier run, cache empty"
        ),
        Row("PyTorch tutorial's loop", tutorial, "s", note=f"{options.epochs} epochs, no validation"),
        Row("tutorial / ours", tutorial / ours, "times", at_least=12),
    ]
    if fastai is None:
        rows.append(Row("fastai: not installed, left out", 0, "s", note="pip install fastai"))
    else:
        rows.append(
            Row("fastai vision_learner, frozen", fastai, "s", note=f"{options.epochs} epochs, no validation")
        )
        rows.append(Row("fastai / ours", fastai / ours, "times", at_least=15))
    return [
        *rows,
        Row("ours / one pass", ours / one_pass, "times", at_most=1.1),
        Row("ours, compiled / one pass", compiled / one_pass, "times", at_most=1.0),
    ]
