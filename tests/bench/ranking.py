"""Ten backbones ranked from cached features, with intervals and letters, on 200 labels; and how near an estimate of time comes.

Features are made of noise with a little signal: a ranking costs what it costs whatever they say.
"""

import time

import numpy as np

from tests.bench import Options, Row
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.readers import read_arrays
from tljupyter.evidence import Situation, measure_cost, rank_backbones
from tljupyter.evidence.policy import FULL, estimated_seconds
from tljupyter.evidence.timing import measure_steps
from tljupyter.transfer.finetuning import FineTuned

LABELS, BACKBONES, WIDTHS = 200, 10, (512, 2048)


def measure(options: Options) -> list[Row]:
    rng, labels = np.random.default_rng(0), np.arange(LABELS) % 2
    features = {}
    for number, width in enumerate(np.linspace(*WIDTHS, BACKBONES).astype(int)):
        rows = rng.normal(size=(LABELS, width))
        rows[:, :10] += 0.1 * number * (2 * labels[:, None] - 1)
        features[f"backbone {number}"] = np.maximum(rows, 0).astype(np.float32)
    size = f"{BACKBONES} backbones, {LABELS} x {WIDTHS[0]} to {WIDTHS[1]} cached features"
    found = []
    for score in ("logme", "h_score", "n_leep", "probe"):
        start = time.perf_counter()
        rank_backbones(features, labels, score=score)
        promised = 5.0 if score == "logme" else None
        found.append(
            Row(f"a ranking by {score}", time.perf_counter() - start, "s", at_most=promised, note=size)
        )
    return [*found, *estimate(options)]


def estimate(options: Options) -> list[Row]:
    "What a micro-batch says of a fine-tuning, and how long that then takes."
    backbone = load_backbone("small_groupnorm", weights="random")
    rng, labels = np.random.default_rng(0), np.arange(48) % 2
    images = read_arrays(rng.random((48, 64, 64), dtype=np.float32), [str(code) for code in labels])
    seconds = measure_steps(backbone, images=48)
    said = estimated_seconds(Situation(24, 2, backbone.features, backbone.parameters, seconds=seconds))[FULL]
    start = time.perf_counter()
    FineTuned(backbone, plan="all").fit(images)
    taken = time.perf_counter() - start
    return [
        Row(
            "a fine-tuning, estimated / taken", said / taken, "", note="small_groupnorm, 48 images, 20 epochs"
        ),
        Row("an image through it", measure_cost(backbone).milliseconds, "ms", note="forward, batches of 8"),
    ]
