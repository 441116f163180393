"""Memory for many images: features of 10,000 files, anonymous memory of the process watched from outside.

The files decode to 6 GB together. The network is small and has one thread, so that the benchmark is short.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import Options, Row
from tests.bench.images import make_many_images

CHILD = """
import sys
from pathlib import Path
import torch
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.readers import read_folder
from tljupyter.features.boundary import boundary_features
from tljupyter.features.cache import FeatureCache

torch.set_num_threads(1)
domain = read_folder(Path(sys.argv[1]))
backbone = load_backbone("resnet20_cifar", weights="random")
features = boundary_features(backbone, domain.items, len(backbone.stages), cache=FeatureCache(Path(sys.argv[2])))
print(features.shape)
"""


def measure(options: Options) -> list[Row]:
    if not Path("/proc/self/status").exists():
        return [
            Row("skipped", 0, "", note="anonymous memory is read from /proc, which this system does not have")
        ]
    with tempfile.TemporaryDirectory() as made:
        folder = make_many_images(Path(made), options.many)
        start = time.perf_counter()
        peak = watched([sys.executable, "-c", CHILD, str(folder), str(Path(made) / "cache")])
        seconds = time.perf_counter() - start
    return [
        Row(
            "peak anonymous memory",
            peak / 2**30,
            "GiB",
            at_most=2,
            note=f"features of {options.many:,} images",
        ),
        Row(
            "images through it",
            options.many / seconds,
            "images/s",
            note="ResNet-20 at 32 px, files of 448 px",
        ),
    ]


def watched(command: list[str]) -> int:
    "Run a command; the largest anonymous memory (bytes) that it was seen to hold."
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(0.02)
    if child.returncode:
        raise RuntimeError(f"the watched process ended with {child.returncode}")
    return peak


def anonymous_bytes(pid: int) -> int:
    "RssAnon of a process; 0 once it is gone."
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
