"""Deep alignment on handwritten digits: all labels in MNIST, none in USPS.

`python -m tests.deep_digits FOLDER FILE.json` measures every method in five draws, on one core. FOLDER holds
digits.npz; FILE.json is what nbs/explain/deep_alignment.ipynb lays out.
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from tljupyter.backbones.registry import random_backbone
from tljupyter.backbones.small import GREY_64
from tljupyter.domains.domain import Domain
from tljupyter.domains.readers import read_arrays
from tljupyter.freezing import FreezePlan
from tljupyter.measures.intervals import (
    HeldOut,
    Interval,
    ResampledScores,
    interval_of_gain,
    resampled_scores,
)
from tljupyter.measures.metrics import find_metric
from tljupyter.training import TrainingSpec
from tljupyter.transfer.alignment.deep import DeepAligned

TEST_IMAGES = 1000
ARMS = (
    "coral",
    "dan",
    "dann",
    "cdan",
    "mcc",
)  # statistics of batches do not exist in a group-normalised network
FEW_CLASSES = 5  # of the ten in the target domain, where classes are missing there: 0 to 4


@dataclass(frozen=True)
class Measured:
    "One method in every draw."

    scores: ResampledScores  # balanced accuracy on the target's test images
    before: tuple[float, ...]  # proxy A-distance of the features in each draw, as the network began
    after: tuple[float, ...]  # and as it ended


@dataclass(frozen=True)
class Digits:
    "Both domains; the images to test on are the same in every draw."

    source: Domain  # MNIST
    pool: Domain  # USPS without those to test on
    test: Domain

    @classmethod
    def read(cls, folder: Path) -> "Digits":
        found = np.load(folder / "digits.npz")
        source, target = (
            read_arrays(
                found[f"{name}_x"].astype(np.uint8), [str(label) for label in found[f"{name}_y"]], name=name
            )
            for name in ("mnist", "usps")
        )
        order = np.random.default_rng(0).permutation(len(target))
        return cls(source, target.take(order[TEST_IMAGES:]), target.take(order[:TEST_IMAGES]))

    def without_some_classes(self) -> "Digits":
        "The same source; the target domain has the first few digits only."
        kept = (side.take(np.flatnonzero(side.labels < FEW_CLASSES)) for side in (self.pool, self.test))
        return Digits(self.source, *kept)

    def draw(self, seed: int, images: int) -> tuple[Domain, Domain]:
        "Source images, and as many target images whose labels are gone."
        rng = np.random.default_rng(seed)
        source, pool = (side.take(rng.permutation(len(side))[:images]) for side in (self.source, self.pool))
        return source, replace(pool, labels=np.full(len(pool), -1))


def measured(
    digits: Digits,
    alignment: str,
    seeds: Sequence[int],
    images: int = 2000,
    epochs: int = 8,
) -> Measured:
    "Train in each draw, predict the test images, and see how well the features tell the domains apart."
    given, before, after = [], [], []
    for seed in seeds:
        source, pool = digits.draw(seed, images)
        backbone = random_backbone("small_groupnorm", GREY_64.at(16), seed)
        spec = TrainingSpec(epochs=epochs, batch_size=64, learning_rate=2e-3)
        model = DeepAligned(backbone, alignment, plan=FreezePlan.all(backbone), spec=spec, random_state=seed)
        given.append(model.fit(None, source, pool).predict_proba(digits.test))
        before.append(model.shift_before_)
        after.append(model.shift_after_)
    held_out = HeldOut(digits.test.labels, np.arange(len(digits.test)))
    metric, table = find_metric("balanced_accuracy"), np.stack(given)
    found = resampled_scores(metric, held_out, table.argmax(2), table, held_out.weights(1000))
    return Measured(found, tuple(before), tuple(after))


def row(name: str, found: Measured, control: Measured) -> dict[str, object]:
    gain: Interval = interval_of_gain(found.scores, control.scores)
    numbers = {"gain": gain.estimate, "low": gain.low, "high": gain.high}
    return {
        "alignment": name,
        "by_draw": [round(float(value), 4) for value in found.scores.values],
        "shift_before": round(float(np.mean(found.before)), 2),
        "shift_after": round(float(np.mean(found.after)), 2),
        **{what: round(float(value), 4) for what, value in numbers.items()},
    }


def measure(folder: Path, seeds: Sequence[int] = range(5)) -> dict[str, object]:
    "Every method against the control, with the source's classes in the target and with half of them."
    start, tables, every = time.perf_counter(), {}, Digits.read(folder)
    for name, digits in (("all classes", every), ("some classes", every.without_some_classes())):
        control = measured(digits, "none", seeds)
        tables[name] = [row("none", control, control)]
        for alignment in ARMS:
            tables[name].append(row(alignment, measured(digits, alignment, seeds), control))
            print(name, tables[name][-1], file=sys.stderr, flush=True)
    return {
        "command": shlex.join(["python", "-m", "tests.deep_digits", "FOLDER", "FILE.json"]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(time.perf_counter() - start),
        "tables": tables,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(measure(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
