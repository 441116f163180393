"""A second experiment on the same images: another draw, another head, in a new process, from the cache of the first.

Imports are outside both figures, as is the making of the network; the row below says what loading it costs.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from tests.bench import Options, Row
from tests.bench.images import make_images

CHILD = """
import json, sys, time
from pathlib import Path
import torch
from tests.bench import Options
from tests.bench.ours import frozen_training, network
from tljupyter.features.cache import FeatureCache

given = json.loads(sys.argv[1])
options = Options(**given["options"])
torch.set_num_threads(given["threads"])
start = time.perf_counter()
backbone = network(options)
loading = time.perf_counter() - start
seconds = frozen_training(backbone, Path(given["images"]), FeatureCache(Path(given["cache"])), options, seed=given["seed"])
print(json.dumps({"loading": loading, "seconds": seconds}))
"""


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        images = make_images(Path(made) / "images", options.images)
        first, second = (experiment(images, Path(made) / "cache", options, seed) for seed in (0, 1))
    return [
        Row("first experiment", first["seconds"], "s", note="cache empty, engine eager"),
        Row("second experiment", second["seconds"], "s", note="other draw and head, new process"),
        Row("second / first", 100 * second["seconds"] / first["seconds"], "%", at_most=3),
        Row("making the network", second["loading"], "s", note="in neither figure"),
    ]


def experiment(images: Path, cache: Path, options: Options, seed: int) -> dict[str, float]:
    "One experiment in a process of its own."
    given = {
        "options": asdict(options),
        "threads": torch.get_num_threads(),
        "images": str(images),
        "cache": str(cache),
        "seed": seed,
    }
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(given)], capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
