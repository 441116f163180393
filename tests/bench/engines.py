"""Engines for the frozen stages: images a second, and how far outputs are from the eager ones."""

import tempfile
import time
from pathlib import Path

from tests.bench import Options, Row
from tests.bench.ours import engine_choice, network
from tljupyter.features.cache import FeatureCache


def measure(options: Options) -> list[Row]:
    return [row for name in ("resnet18", "squeezenet1_0") for row in of_network(name, options)]


def of_network(name: str, options: Options) -> list[Row]:
    backbone = network(options, name)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):  # the second time, the exported network is there
            start = time.perf_counter()
            choice = engine_choice(backbone, FeatureCache(Path(folder)), options)
            seconds.append(time.perf_counter() - start)
    rows = []
    for engine, speed in choice.images_per_second.items():
        rows.append(
            Row(f"{name}, {engine}", speed, "images/s", note="chosen" if engine == choice.engine else "")
        )
        if engine != "eager":
            rows.append(Row(f"{name}, {engine}: difference", choice.error[engine], "", at_most=1e-4))
    return [
        *rows,
        Row(
            f"{name}: choosing", seconds[0], "s", note=f"{seconds[1]:.2g} s with the network exported before"
        ),
    ]
