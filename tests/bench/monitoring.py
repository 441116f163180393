"""What watching costs a training, and how soon it obeys.

Processor time is counted where it is spent: in the two threads that listen, write and look at the machine, and in the
calls that the loop makes. The difference of two trainings, one watched and one not, would be smaller than its noise on
a machine that does other things, too. What a person sees is measured where they see it: in a real JupyterLab and a
real Chromium, from the click to the words of the answer.
"""

import gc
import json
import re
import sys
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
from tests.browser.conftest import CHROMIUM, LabPage, launched_chromium, launched_lab
from tljupyter.backbones.weights import load_backbone
from tljupyter.freezing import FreezePlan
from tljupyter.runs.files import append_line
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.hardware import Sampler
from tljupyter.runs.live import start
from tljupyter.runs.observer import RunObserver
from tljupyter.runs.request import Request
from tljupyter.runs.work import TEMPLATE
from tljupyter.settings import Settings
from tljupyter.training import Event, Network, Orders, TrainingSpec, train

ORDERS, IMAGES = 20, 64
POINTS, WATCHED = 200_000, 10  # told by a run; seconds for which its monitor is watched


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as made:
        network = cost(Path(made), FreezePlan.last, epochs=12)
        head = cost(Path(made), FreezePlan.linear_probe, epochs=1500)
        received, applied = latencies(Path(made))
        shown = in_a_browser(Path(made))
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
        *shown,
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
        gc.collect()
        gc.disable()  # a collection would be counted as ours wherever it happens to fall into a call of ours
        timed, began = Timed(observer), time.process_time()
        train(network, plan, inputs, labels, TrainingSpec(epochs=epochs), timed)
        total, watching = time.process_time() - began, sum(map(processor_time, ours))
    gc.enable()
    torch.set_num_threads(threads)
    run.release()
    watching += timed.seconds - timed.calls * looking_at_the_clock()
    return 100 * watching / (total - watching)


def make_request(place: Path) -> Request:
    "Dark and bright noise, and a training that would take very long."
    rng = np.random.default_rng(0)
    for name in ("dark", "bright"):
        (place / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(30):
            picture = rng.integers(0, 128, (64, 64)) + 100 * (name == "bright")
            Image.fromarray(picture.astype(np.uint8)).save(place / "images" / name / f"{i}.png")
    return Request(str(place / "images"), "small_groupnorm", "random", labels_per_class=15, epochs=100_000)


def latencies(place: Path) -> tuple[list[float], list[float]]:
    "Seconds until orders to a training in another process are received, and applied."
    settings = Settings(cache_dir=place / "cache", device="cpu", threads=1)
    live = start(make_request(place), place / "live", blocking=False, settings=settings)
    received, applied = [], []
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


CLICK = """async ([run, button]) => {
    const panel = document.querySelector(`[aria-label="Training ${run}"]`), orders = panel.querySelector("details summary")
    const before = orders.textContent, newest = panel.querySelector(".tl-tm-newest"), began = performance.now()
    const shown = marks => new Promise(resolve => {
        const look = () => {
            if (orders.textContent !== before && marks.includes(newest.firstChild?.textContent[0])) {
                watch.disconnect()
                resolve((performance.now() - began) / 1000)
            }
        }
        const watch = new MutationObserver(look)
        watch.observe(panel, { subtree: true, childList: true, characterData: true })
    })
    const both = Promise.all([shown("◔✓"), shown("✓")]);
    [...panel.querySelectorAll("button")].find(one => one.textContent === button).click()
    return both
}"""
FRAMES = """seconds => new Promise(resolve => {
    let last = performance.now(), longest = 0, frames = 0, drawings = 0
    const watch = new MutationObserver(() => { drawings += 1 })
    watch.observe(document.querySelector(".tl-tm-lines"), { subtree: true, attributeFilter: ["d"] })
    const end = last + 1000 * seconds, next = now => {
        longest = Math.max(longest, now - last)
        last = now
        frames += 1
        if (now < end) requestAnimationFrame(next)
        else resolve([longest, frames, drawings])
    }
    requestAnimationFrame(now => { last = now; requestAnimationFrame(next) })
})"""
SHOW = "from tljupyter.widgets.monitor import Monitor\nmonitor = Monitor({!r})\nmonitor"


def in_a_browser(place: Path) -> list[Row]:
    "What a person sees; nothing where there is no browser."
    if not CHROMIUM.exists():
        print("no chromium: what is seen in a browser is not measured", file=sys.stderr)
        return []
    (place / "lab").mkdir()
    with launched_chromium() as chromium, launched_lab(chromium, place / "lab") as lab:
        settings = Settings(cache_dir=place / "cache", runs_dir=lab.runs, device="cpu", threads=1)
        live = start(make_request(place), lab.runs / "clicked", blocking=False, settings=settings)
        with lab.open(lab.write("clicks", SHOW.format("clicked"))) as page:
            clicks = clicked(page)
            live.wait(60)
        with lab.open(lab.write("many", "import anywidget", SHOW.format(str(place / "many")))) as page:
            return [*clicks, *displayed(page, place)]


def clicked(page: LabPage) -> list[Row]:
    "Seconds from a click to the words that it was received, and that it was applied."
    page.run_all()
    page.view.get_by_text("● training").wait_for(timeout=120_000)
    buttons = [("Pause", "Resume", "Learning rate ×")[number % 3] for number in range(ORDERS)]
    page.view.get_by_label("Factor on the learning rate").fill("0.99")
    seconds = []
    for button in buttons:
        page.view.wait_for_timeout(300)  # nobody clicks faster; not in step with the reader
        page.view.get_by_role("button", name=button, exact=True).wait_for()
        seconds.append(page.view.evaluate(CLICK, ["clicked", button]))
    received, applied = zip(*seconds, strict=True)
    (stopped, _) = page.view.evaluate(CLICK, ["clicked", "Stop, keep the best"])
    return [
        Row(
            "click to acknowledgement, median",
            median(received),
            "s",
            at_most=0.3,
            note=f"{ORDERS} clicks in Chromium",
        ),
        Row("click to acknowledgement, worst", max(received), "s", at_most=0.3),
        Row("click to applied, median", median(applied), "s", note="pause, resume, rate"),
        Row("click to applied, worst", max(applied), "s"),
        Row("click on stop to acknowledgement", stopped, "s", at_most=0.3),
    ]


def displayed(page: LabPage, place: Path) -> list[Row]:
    "Memory and frames of a page that shows a long run and its updates; what the kernel's reader takes."
    run = RunFolder.create(place / "many", TEMPLATE, make_request(place).to_dict())
    run.tell("running", 0.5)
    row = {
        "event": "step",
        "arm": "fine-tuned",
        "time": "",
        "epoch": 0,
        "steps": 2 * POINTS,
        "learning_rate": 1e-3,
    }
    losses = np.exp(-np.arange(2 * POINTS) / POINTS) + 0.05 * np.random.default_rng(0).normal(size=2 * POINTS)
    lines = (json.dumps(row | {"step": step, "loss": float(losses[step])}) for step in range(POINTS))
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page.command("notebook:run-cell-and-select-next")  # only the first, so that the mechanism is loaded
    session = page.context.new_cdp_session(page.view)
    before = heap(session)
    began = time.perf_counter()
    page.command("notebook:run-cell")
    page.view.get_by_text(re.compile(f"step {POINTS - 1:,}")).first.wait_for(timeout=60_000)
    opening = time.perf_counter() - began
    telling = threading.Event()

    def tell() -> None:
        for step in range(POINTS, 2 * POINTS):
            if telling.wait(0.05):
                return
            append_line(run.path / "metrics.jsonl", row | {"step": step, "loss": float(losses[step])})

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    page.view.wait_for_timeout(2000)
    spent = (
        "__import__('time').clock_gettime(__import__('time').pthread_getcpuclockid(monitor._reader.ident))"
    )
    began, used = time.perf_counter(), page.ask(spent)
    longest, frames, drawings = page.view.evaluate(FRAMES, WATCHED)
    assert drawings > WATCHED, "the curve does not follow"
    used, passed = page.ask(spent) - used, time.perf_counter() - began
    after = heap(session)
    shown = page.ask("len(monitor.watch.arms['fine-tuned'].steps['loss'])")
    telling.set()
    teller.join()
    run.end("finished")
    what = f"{POINTS:,} points displayed"
    return [
        Row(
            f"{what}: memory in the page",
            (after - before) / 2**20,
            "MiB",
            at_most=50,
            note=f"{shown - POINTS:,} more came in",
        ),
        Row(
            f"{what}: longest frame",
            longest,
            "ms",
            at_most=100,
            note=f"{frames / WATCHED:.0f} frames and {drawings / WATCHED:.0f} drawings a second",
        ),
        Row(f"{what}: from the cell to the curve", opening, "s"),
        Row(
            f"{what}: reading and sending",
            100 * used / passed,
            "%",
            at_most=2,
            note="of one core, in the kernel",
        ),
    ]


def heap(session) -> int:
    "Bytes of JavaScript in the page that are in use."
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return int(metrics["JSHeapUsedSize"])
