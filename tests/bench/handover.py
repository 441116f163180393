"""A handed-over model at work: throughput against a bare torch loop over the same images.

Both sides decode with Pillow, prepare by the same specification and run the same ResNet-18 (random weights, which cost
the same) with as many threads; they take turns and the best of three rounds counts. Loading and imports are outside.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.bench import Options, Row
from tests.bench.images import make_images
from tests.bench.ours import network
from tljupyter.handover.export import expand_files, predict_files
from tljupyter.handover.model import HandedModel, load_model, save_model
from tljupyter.handover.onnx import export_onnx, runtime
from tljupyter.training import Network

ROUNDS = 3
NO_SLOWER = 1 / 1.1  # of the bare loop's throughput


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        backbone, folder = network(options), Path(made) / "model"
        save_model(Network(backbone, nn.Linear(backbone.features, 2), ("round", "square")), folder)
        model = load_model(folder)
        files = expand_files([make_images(Path(made) / "images", options.images)])
        decoded = [Image.open(path).convert("RGB") for path in files]
        prepared = np.stack([model.prepare(image) for image in decoded])
        export_onnx(model, folder / "model.onnx", prepared[:8])
        run = runtime((folder / "model.onnx").read_bytes())
        size = options.batch_size
        works = (
            (
                "files",
                lambda: list(bare(model, (Image.open(path).convert("RGB") for path in files), size)),
                lambda: list(predict_files(model, files, size)),
            ),
            (
                "decoded images",
                lambda: list(bare(model, decoded, size)),
                lambda: model.predict_proba(decoded, size),
            ),
            (
                "prepared images",
                lambda: [forward(model, batch) for batch in split(prepared, size)],
                lambda: model.predict_proba(torch.from_numpy(prepared), size),
            ),
            (
                "prepared images, ONNX",
                lambda: [forward(model, batch) for batch in split(prepared, size)],
                lambda: [run(batch) for batch in split(prepared, size)],
            ),
        )
        return [row for what, plain, ours in works for row in compared(what, plain, ours, len(files))]


def compared(what: str, plain: Callable[[], object], ours: Callable[[], object], images: int) -> list[Row]:
    "Both in turns; the first turn warms up."
    best = {"bare": float("inf"), "ours": float("inf")}
    for turn in range(ROUNDS + 1):
        for name, work in (("bare", plain), ("ours", ours)):
            start = time.perf_counter()
            work()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return [
        Row(f"{what}: bare torch loop", images / best["bare"], "images/s"),
        Row(f"{what}: ours", images / best["ours"], "images/s"),
        Row(f"{what}: ours / bare", best["bare"] / best["ours"], "times", at_least=NO_SLOWER),
    ]


def bare(
    model: HandedModel, images: Sequence[Image.Image] | Iterator[Image.Image], size: int
) -> Iterator[np.ndarray]:
    "The loop that a person would write: prepare, stack, run."
    rows = []
    for image in images:
        rows.append(torch.from_numpy(model.backbone.input(image)))
        if len(rows) == size:
            yield forward(model, torch.stack(rows))
            rows = []
    if rows:
        yield forward(model, torch.stack(rows))


def forward(model: HandedModel, batch: torch.Tensor | np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.module(torch.as_tensor(batch)).numpy()


def split(prepared: np.ndarray, size: int) -> list[np.ndarray]:
    return [prepared[start : start + size] for start in range(0, len(prepared), size)]
