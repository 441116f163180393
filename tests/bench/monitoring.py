"""What watching costs a training, and how soon it obeys.

Processor time is counted where it is spent: in the two threads that listen, write and look at the machine, and in the
calls that the loop makes. The difference of two trainings, one watched and one not, would be smaller than its noise on
a machine that does other things, too.
"""

import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.bench import Options, Row
from tljupyter.backbones.weights import load_backbone
from tljupyter.freezing import FreezePlan
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.hardware import Sampler
from tljupyter.runs.live import start
from tljupyter.runs.observer import RunObserver
from tljupyter.runs.request import Request
from tljupyter.runs.work import TEMPLATE
from tljupyter.settings import Settings
from tljupyter.training import Event, Network, Orders, TrainingSpec, train

ORDERS, IMAGES = 20, 64


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        network = cost(Path(made), FreezePlan.last, epochs=12)
        head = cost(Path(made), FreezePlan.linear_probe, epochs=1500)
        received, applied = latencies(Path(made))
    return [
        Row("watching a network train", network, "%", at_most=2, note="last stage of ResNet-18 at 112 px"),
        Row(
            "watching a head train",
            head,
            "%",
            at_most=2,
            note="finished features: the shortest steps there are",
        ),
        Row("order to received, median", median(received), "s", at_most=0.3, note=f"{ORDERS} orders by file"),
        Row("order to received, worst", max(received), "s", at_most=0.3),
        Row("order to applied, median", median(applied), "s", at_most=0.3, note="asked from another process"),
        Row("order to applied, worst", max(applied), "s"),
    ]


class Features:
    "Random numbers in the place of features at a boundary."

    views = 1

    def __init__(self, backbone, boundary: int):
        shape = backbone.shapes[boundary - 1]
        self.array = np.random.default_rng(0).random((IMAGES, *shape), dtype=np.float32)

    def __len__(self) -> int:
        return IMAGES

    def batch(self, boundary: int, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        return self.array[rows]


class Timed:
    "An observer whose calls are timed by the processor's clock."

    def __init__(self, observer: RunObserver):
        self.observer, self.seconds, self.calls = observer, 0.0, 0

    def tell(self, event: Event) -> None:
        began = time.thread_time()
        self.observer.tell(event)
        self.seconds, self.calls = self.seconds + time.thread_time() - began, self.calls + 1

    def ask(self) -> Orders:
        began = time.thread_time()
        orders = self.observer.ask()
        self.seconds, self.calls = self.seconds + time.thread_time() - began, self.calls + 1
        return orders


def looking_at_the_clock(times: int = 10_000) -> float:
    "Seconds that a look at the clock adds to what it measures."
    seconds = 0.0
    for _ in range(times):
        began = time.thread_time()
        seconds += time.thread_time() - began
    return seconds / times


def processor_time(thread: threading.Thread) -> float:
    "Seconds of processor time that a living thread has used."
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def cost(place: Path, plan_of, epochs: int) -> float:
    "Processor time of watching, in percent of what is watched."
    backbone = load_backbone("resnet18", weights="random", input_size=112)
    plan = plan_of(backbone)
    inputs, labels = Features(backbone, plan.boundary(backbone)), np.arange(IMAGES) % 2
    network = Network(backbone.copy(), nn.Linear(backbone.features, 2), ("a", "b"))
    run = RunFolder.create(place / plan_of.__name__, TEMPLATE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    with Sampler(run.path), RunObserver(run, backbone.stage_names) as observer:
        ours = [thread for thread in threading.enumerate() if thread.name in ("run observer", "hardware")]
        timed, began = Timed(observer), time.process_time()
        train(network, plan, inputs, labels, TrainingSpec(epochs=epochs), timed)
        total, watching = time.process_time() - began, sum(map(processor_time, ours))
    torch.set_num_threads(threads)
    run.release()
    watching += timed.seconds - timed.calls * looking_at_the_clock()
    return 100 * watching / (total - watching)


def latencies(place: Path) -> tuple[list[float], list[float]]:
    "Seconds until orders to a training in another process are received, and applied."
    rng = np.random.default_rng(0)
    for name in ("dark", "bright"):
        (place / "images" / name).mkdir(parents=True)
        for i in range(30):
            picture = rng.integers(0, 128, (64, 64)) + 100 * (name == "bright")
            Image.fromarray(picture.astype(np.uint8)).save(place / "images" / name / f"{i}.png")
    request = Request(str(place / "images"), "small_groupnorm", "random", labels_per_class=15, epochs=100_000)
    settings = Settings(cache_dir=place / "cache", device="cpu", threads=1)
    live, received, applied = start(request, place / "live", blocking=False, settings=settings), [], []
    live.control.wait(live.control.rate(1.0), seconds=120)
    for number in range(ORDERS):
        kind, value = (("pause", None), ("resume", None), ("rate", 0.9), ("epochs", 1))[number % 4]
        began = time.perf_counter()
        order = live.control.give(kind, value)
        live.control.wait(order, received=True)
        received.append(time.perf_counter() - began)
        live.control.wait(order)
        applied.append(time.perf_counter() - began)
    live.control.stop()
    live.wait(60)
    return received, applied
