"""Live trainings in real worker processes: steered by files alone, killed, resumed, interrupted, two at once."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from test_runs import fill, small_disk  # noqa: F401 a fixture

from tljupyter.backbones.weights import load_backbone
from tljupyter.cli import main
from tljupyter.freezing import FreezePlan
from tljupyter.handover.model import load_model
from tljupyter.refusals import Refusal
from tljupyter.runs.control import Control
from tljupyter.runs.files import read_lines
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.hardware import read_gpus
from tljupyter.runs.live import LiveRun, start
from tljupyter.runs.observer import RunObserver, Stopped
from tljupyter.runs.request import Request
from tljupyter.runs.watch import RunWatch
from tljupyter.runs.work import TEMPLATE, fulfil
from tljupyter.settings import Settings
from tljupyter.training import Event
from tljupyter.widgets.data_view import DataView


def write_digits(place: Path, each: int, codes=(1, 7), skip: int = 0) -> Path:
    "Handwritten digits as image files in class folders."
    digits = load_digits()
    for code in codes:
        (place / f"digit {code}").mkdir(parents=True)
        for i, picture in enumerate(digits.images[digits.target == code][skip : skip + each]):
            Image.fromarray((picture * 15).astype(np.uint8)).save(
                place / f"digit {code}" / f"{i + skip:03}.png"
            )
    return place


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("live")
    write_digits(place / "digits", 60)
    return place


@pytest.fixture
def settings(shared) -> Settings:
    return Settings(cache_dir=shared / "cache", runs_dir=shared / "runs", device="cpu", threads=1)


@pytest.fixture
def asked(shared) -> Request:
    return Request(str(shared / "digits"), "digits_convnet", "random", labels_per_class=20, epochs=5)


@pytest.fixture
def begin(settings):
    "Starts trainings in processes of their own; none is left behind."
    begun = []

    def start_process(request: Request, folder: Path) -> LiveRun:
        begun.append(start(request, folder, blocking=False, settings=settings))
        return begun[-1]

    yield start_process
    for live in begun:
        live._process.kill()
        live._process.wait()


def until(what, seconds: float = 40.0) -> None:
    "Wait for something to become true."
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def training(live: LiveRun) -> bool:
    "Whether an epoch has ended."
    lines = live.folder / "metrics.jsonl"
    return lines.exists() and b'"event": "epoch"' in lines.read_bytes()


def same_predictions(one: LiveRun | RunFolder, other: LiveRun | RunFolder) -> None:
    found = [RunFolder.open(run.path if isinstance(run, RunFolder) else run.folder) for run in (one, other)]
    pd.testing.assert_frame_equal(*(run.predictions() for run in found))


ANOTHER = """
import json, sys, time
from tljupyter.runs.control import Control
control, told = Control(sys.argv[1]), []
for kind, value in json.loads(sys.argv[2]):
    start = time.monotonic()
    order = control.give(kind, tuple(value) if isinstance(value, list) else value)
    received = control.wait(order, received=True) and time.monotonic() - start
    answer = control.wait(order)
    told.append([kind, answer.outcome, received, time.monotonic() - start, answer.step])
print(json.dumps(told))
"""


@pytest.mark.slow
def test_orders_are_obeyed_an_interrupt_keeps_the_best_and_all_can_be_repeated(
    shared, settings, asked, begin, capsys
):
    live = begin(replace(asked, epochs=100_000, from_scratch=True), shared / "steered")
    until(lambda: training(live))
    cost = live.thaw_cost("stem")
    assert (cost.boundary, cost.new_boundary) == (1, 0) and cost.once_bytes == 4 * 8 * 8 * 40 * 4
    orders = [
        ["rate", 0.5],
        ["pause", None],
        ["thaw", ["stem"]],
        ["epochs", 2],
        ["resume", None],
        ["rate", 3],
    ]
    orders += [["pause", None], ["resume", None]] * 3 + [["rate", 1.1]] * 3
    command = [sys.executable, "-c", ANOTHER, str(live.folder), json.dumps(orders)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # by file only
    paused_at = []
    while other.poll() is None:
        if live.status.state == "paused":
            paused_at.append(read_lines(live.folder / "metrics.jsonl")[-1]["event"])
        time.sleep(0.005)
    told = json.loads(other.stdout.read())
    assert [(kind, outcome) for kind, outcome, *_ in told] == [(kind, "applied") for kind, _ in orders]
    assert len({step for _, _, _, _, step in told[1:5]}) == 1  # all four at the step where it was held
    received, applied = ([row[i] for row in told] for i in (2, 3))
    with capsys.disabled():
        print(
            f"\n{len(told)} orders: received after {median(received):.3f} s (worst {max(received):.3f}), "
            f"applied after {median(applied):.3f} s (worst {max(applied):.3f})"
        )
    assert median(applied) < 0.3 and median(received) < 0.3
    refused = live.control.thaw("stam")
    assert live.control.wait(refused).reason.startswith('there is no stage "stam". Did you mean "stem"?')
    os.kill(live.status.pid, signal.SIGINT)
    status, watch = live.wait(30), live.watch()
    curves = watch.arms["fine-tuned"]
    assert status.state == "stopped" and f"epoch {curves.best_epoch + 1} is kept" in status.message
    assert curves.thaws and curves.thaws[0][1] == 0 and curves.planned == 2 * 100_002 and paused_at
    best = max(curves.epochs, key=lambda row: (row["valid_balanced_accuracy"], -row["valid_loss"]))
    assert best["epoch"] == curves.best_epoch and len(watch.hardware) >= 1
    steps = [row for row in read_lines(live.folder / "metrics.jsonl") if row["event"] == "step"]
    seconds = (pd.Timestamp(steps[-1]["time"]) - pd.Timestamp(steps[0]["time"])).total_seconds()
    assert len(steps) <= 10 * seconds + 2 and sum(row["over"] for row in steps) == steps[-1]["step"]
    assert {row["arm"] for row in live.results()["arms"]} == {"majority", "linear probe", "fine-tuned"}
    assert any("from scratch" in note for note in live.results()["notes"])  # why it is not there
    assert load_file(live.folder / "model.safetensors")["target_head.weight"].shape == (2, 64)
    repeated = RunFolder.create(shared / "repeated", TEMPLATE, live.again().to_dict())
    repeated.release()
    fulfil(repeated.path, settings)
    same_predictions(live, repeated)


@pytest.mark.slow
def test_killed_and_resumed_beside_another_gives_the_numbers_of_one_left_alone(
    shared, settings, asked, begin, capsys, monkeypatch
):
    for name in ("cache_dir", "device", "threads", "runs_dir"):
        monkeypatch.setenv(f"TLJUPYTER_{name.upper()}", str(getattr(settings, name)))
    everything = FreezePlan.all(load_backbone(asked.backbone, "random")).to_yaml()
    (shared / "plan.yaml").write_text(everything)
    longer = replace(asked, epochs=60, plan=everything)
    killed = begin(longer, settings.runs_dir / "killed")
    until(lambda: training(killed))
    assert main(["pause", "kill"]) == 0 and killed.status.state == "paused"
    assert main(["rate", "killed", "0"]) == 2 and main(["stop", "nothing"]) == 2
    parameters = {"backbone": asked.backbone, "weights": "random", "labels_per_class": 20, "epochs": 60}
    typed = [f"-p{name}={value}" for name, value in {**parameters, "plan": shared / "plan.yaml"}.items()]
    assert main(["train", asked.data_dir, *typed, "--out", str(settings.runs_dir / "alone")]) == 0
    alone, said = LiveRun(settings.runs_dir / "alone"), capsys.readouterr()
    assert said.out.startswith("pause: applied at step ") and said.out.endswith(f"{alone.folder}\n")
    assert main(["runs", "--json"]) == 0
    states = {Path(row["folder"]).name: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == {"killed": "paused", "alone": "finished"}
    killed._process.kill()
    status = killed.wait(10)
    assert status.state == "failed" and "SIGKILL" in status.error
    assert LiveRun(killed.folder).status.error == "the process died"  # who did not start it knows no more
    assert main(["resume", "killed"]) == 2 and "nobody is left to obey" in capsys.readouterr().err
    resumed = start(longer, killed.folder, where="thread", blocking=True, resume=True, settings=settings)
    assert resumed.status.state == "finished"
    same_predictions(resumed, alone)
    assert resumed.watch().arms["fine-tuned"].epochs[0]["epoch"] == 0
    with pytest.raises(Refusal, match="finished run"):
        start(longer, killed.folder, blocking=False, settings=settings)
    # The model that was kept is the one that was tested.
    table = alone.run.predictions()
    tested = table[(table["arm"] == "fine-tuned") & (table["part"] == "test")]
    files = [Path(asked.data_dir) / case for case in tested["case"]]
    said = load_model(alone.folder).predict_proba(files)
    np.testing.assert_allclose(said[:, 1], tested["p_1"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "/nowhere"], "no such file or folder"),
        (["train", "/tmp", "-p", "epoch=1"], 'Did you mean "epochs"'),
        (["train", "/tmp", "-p", "epochs=many"], "epochs = 'many'"),
        (["train", "/tmp", "-p", "plan=no.yaml"], "cannot be read"),
        (["stop", "nothing"], "is no run"),
        (["work", "/nowhere"], "no params.json"),
    ],
)
def test_what_cannot_be_is_refused_with_2(arguments, said, capsys):
    assert main(arguments) == 2 and said in capsys.readouterr().err


@pytest.mark.slow
def test_start_waits_where_nobody_sits_at_the_kernel(shared, settings, asked):
    place = shared / "sided"
    for side, skip, each in (("train", 0, 20), ("valid", 60, 10), ("test", 100, 30)):
        write_digits(place / side, each, skip=skip)
    for i in range(12):  # fewer of one class
        (place / "train" / "digit 7" / f"{i:03}.png").unlink()
    request = replace(asked, data_dir=str(place), labels_per_class=0, from_scratch=True)
    code = f"""
from pathlib import Path
from tljupyter.runs.live import attended, start
from tljupyter.settings import Settings
settings = Settings(cache_dir=Path({str(settings.cache_dir)!r}), device="cpu", threads=1)
live = start({request.to_dict()!r}, {str(shared / "executed")!r}, settings=settings, where="thread")
print(live.status.state, attended())"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client, said = NotebookClient(notebook, kernel_name="python3"), []
    with client.setup_kernel():
        client.execute_cell(notebook.cells[0], 0)
        run_sync(client.kc.execute_interactive)(
            "print(attended())",
            allow_stdin=True,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
    printed = [output.text for output in notebook.cells[0].outputs if output.get("name") == "stdout"]
    assert printed == ["finished False\n"] and "".join(said) == "True\n"
    # All labels there are, and a validation side of their own.
    live = LiveRun(shared / "executed")
    notes, predictions = live.results()["notes"], live.run.predictions()
    assert "All 28 labels were used (20 digit 1, 8 digit 7)" in notes[0] and "20 labelled images" in notes[1]
    counts = predictions[predictions["part"] == "train"].groupby("arm").size()
    assert set(counts) == {28} and "from scratch" in counts and set(predictions["labels_per_class"]) == {8}
    assert list(live.watch().arms) == ["fine-tuned", "from scratch"]


def test_what_the_data_show_is_told_by_the_status(shared, settings, asked):
    write_digits(shared / "lonely", 20, codes=(1,))
    live = start(
        replace(asked, data_dir=str(shared / "lonely")), blocking=True, where="thread", settings=settings
    )
    assert live.status.state == "failed" and "one-class" in live.status.error
    assert live.folder.parent == settings.runs_dir
    wrong = replace(asked, plan=FreezePlan.all(load_backbone("small_groupnorm", "random")).to_yaml())
    live = start(wrong, blocking=True, where="thread", settings=settings)
    assert "Freeze plan: digits_convnet has no stage" in live.status.error
    for request, said in (
        (replace(asked, data_dir="/nowhere"), "no such file or folder"),
        ({"data_dir": asked.data_dir, "epoch": 1}, 'Did you mean "epochs"'),
        (replace(asked, plan="stages: 3"), "list of stages"),
    ):
        with pytest.raises(Refusal, match=re.escape(said)):
            start(request, settings=settings)
    with (
        RunFolder.create(shared / "report", "lung_xray"),
        pytest.raises(Refusal, match="not a live training"),
    ):
        LiveRun(shared / "report")


def test_a_stop_while_images_are_read_leaves_nothing(shared, settings, asked):
    run = RunFolder.create(shared / "early", TEMPLATE, asked.to_dict())
    run.release()
    order = Control(run.path).stop()
    status = fulfil(run.path, settings)
    assert status.state == "stopped" and "nothing to keep" in status.message
    assert Control(run.path).wait(order).outcome == "applied" and not run.read("results.json")
    late = start(asked, run.path, blocking=True, where="thread", resume=True, settings=settings)
    assert late.status.state == "finished"  # the old order was settled: it stops nothing now


def test_a_full_disk_fails_with_the_fix(small_disk, shared, settings, asked):  # noqa: F811
    subprocess.run(["mount", "-o", "remount,size=400k", str(small_disk)], check=True)
    endless = replace(
        asked, epochs=100_000, plan=FreezePlan.all(load_backbone("digits_convnet", "random")).to_yaml()
    )
    live = start(endless, small_disk / "run", blocking=False, where="thread", settings=settings)
    until(lambda: training(live))
    with contextlib.suppress(AssertionError):
        fill(small_disk)
    status = live.wait(30)
    assert status.state == "failed" and "the disk is full; make room" in status.error


MEMORY = """
import resource, sys
from pathlib import Path
import psutil, torch
from tljupyter.runs.work import fulfil
from tljupyter.settings import Settings
torch.set_num_threads(1)
room = psutil.Process().memory_info().vms + int(sys.argv[3]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
status = fulfil(sys.argv[1], Settings(cache_dir=Path(sys.argv[2]), device="cpu", threads=1))
print(status.error)
"""


@pytest.mark.slow
def test_out_of_memory_names_the_batch_that_fits(shared, settings):
    backbone = load_backbone("small_groupnorm", "random")
    write_digits(shared / "few", 16)
    asked = Request(
        str(shared / "few"), "small_groupnorm", "random", FreezePlan.all(backbone).to_yaml(), 8, 0.0,
        epochs=1, batch_size=16, views=1, input_size=256, images_at_once=2,
    )  # fmt: skip
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    for room in range(400, 1200, 150):  # MiB beside what the libraries map, which differs between machines
        RunFolder.create(shared / f"room {room}", TEMPLATE, asked.to_dict()).release()
        command = [
            sys.executable,
            "-c",
            MEMORY,
            str(shared / f"room {room}"),
            str(shared / "cache"),
            str(room),
        ]
        found = subprocess.run(command, capture_output=True, text=True, env=environment)
        told = re.search(r"Out of memory with batch_size=16; batch_size=(\d+) fits here", found.stdout)
        if told or "Out of memory" not in found.stdout:
            break
    assert told, found.stdout + found.stderr
    assert int(told[1]) in (8, 4, 2)


def test_orders_of_two_processes_are_all_heard_once(tmp_path):
    code = "import sys; from tljupyter.runs.control import Control; [Control(sys.argv[1]).rate(0.9) for _ in range(15)]"
    with RunFolder.create(tmp_path / "run", TEMPLATE) as run, RunObserver(run) as observer:
        writers = [subprocess.Popen([sys.executable, "-c", code, str(run.path)]) for _ in range(2)]
        factor = 1.0
        while any(writer.poll() is None for writer in writers) or len(run.metrics()) < 60:
            factor *= observer.ask().rate
            time.sleep(0.002)
    assert factor == pytest.approx(0.9**30)
    orders = [row for row in read_lines(run.path / "metrics.jsonl") if row["event"] == "order"]
    for outcome in ("received", "applied"):
        assert [row["number"] for row in orders if row["outcome"] == outcome] == list(range(1, 31))


def test_a_baseline_cannot_be_steered_and_is_not_cut_short(tmp_path):
    with RunFolder.create(tmp_path / "run", TEMPLATE) as run, RunObserver(run, ["stem"]) as observer:
        observer.watch("from scratch", steered=False)
        observer.tell(Event("started", 0, 0, 10))
        control = Control(run.path)
        slower, hold, go = control.rate(0.1), control.pause(), control.resume()
        control.wait(go, received=True)
        orders = observer.ask()
        assert orders.rate == 1.0 and not orders.pause
        assert control.wait(slower).outcome == "refused" and control.wait(hold).outcome == "applied"
        control.wait(control.stop(), received=True)
        with pytest.raises(Stopped):
            observer.ask()


def test_a_thaw_without_room_is_refused_and_training_goes_on(tmp_path):
    with RunFolder.create(tmp_path / "run", TEMPLATE) as run:
        with RunObserver(run, ["stem"], thaw_problem=lambda stages: f"no room for {stages[0]}") as observer:
            order = Control(run.path).thaw("stem")
            Control(run.path).wait(order, received=True)
            assert observer.ask().thaw == ()
        assert Control(run.path).wait(order).reason == "no room for stem"


@pytest.mark.slow
def test_a_monitor_opened_late_reads_much_quickly(tmp_path):
    run = RunFolder.create(tmp_path / "run", TEMPLATE)
    row = {"event": "step", "arm": "fine-tuned", "time": "", "steps": 200_000, "learning_rate": 1e-3}
    lines = (json.dumps(row | {"step": i, "loss": 1 / (i + 1)}) for i in range(200_000))
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    began = time.perf_counter()
    watch = RunWatch(run.path)
    watch.update()
    x, y = watch.arms["fine-tuned"].of_steps("loss", most=800)
    assert len(x) <= 800 and y[0] == 1 and x[-1] == 199_999 and time.perf_counter() - began < 10
    run.release()


# Graphics cards. There may be none here: a stand-in answers as the driver's documentation says that it does.


class Driver:
    "Two whole cards, the second an old one that knows little, and a third cut into slices."

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __getattr__(self, name):
        if name not in KNOWN:
            raise AttributeError(name)

        def answer(handle=None, *arguments):
            found = KNOWN[name].get(handle, "Not Supported")
            if isinstance(found, str) and found == "Not Supported":
                raise self.NVMLError(found)
            return found

        return answer

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card, number):
        if number > 1:
            raise self.NVMLError("Not Found")
        return f"{card}/{number}"


class Record:
    def __init__(self, **values):
        vars(self).update(values)


KNOWN = {
    "nvmlDeviceGetCount": {None: 3},
    "nvmlDeviceGetName": {0: "H200", 1: b"Old", 2: "A100", "2/0": "A100 MIG 3g", "2/1": "A100 MIG 3g"},
    "nvmlDeviceGetUUID": {},
    "nvmlDeviceGetMigMode": {0: [0, 0], 2: [1, 1]},
    "nvmlDeviceGetMaxMigDeviceCount": {2: 7},
    "nvmlDeviceGetUtilizationRates": {0: Record(gpu=91, memory=40)},
    "nvmlDeviceGetMemoryInfo": {
        0: Record(used=34, total=139), 1: Record(used=1, total=2),
        "2/0": Record(used=5, total=20), "2/1": Record(used=6, total=20),
    },
    "nvmlDeviceGetTemperature": {0: 58, 1: 40, 2: 61},
    "nvmlDeviceGetPowerUsage": {0: 612_000, 2: 250_500},
    "nvmlDeviceGetComputeRunningProcesses": {0: [Record(pid=7, usedGpuMemory=33)], "2/1": [Record(pid=7, usedGpuMemory=3)]},
}  # fmt: skip


def test_cards_slices_and_what_they_do_not_say():
    whole, old, first, second = read_gpus(Driver(), pid=7)
    assert (whole.index, whole.utilisation, whole.memory_process, whole.power) == ("0", 91.0, 33, 612.0)
    assert whole.missing == {} and (whole.memory_used, whole.memory_total, whole.temperature) == (
        34,
        139,
        58.0,
    )
    assert (old.name, old.utilisation, old.power, old.temperature) == ("Old", None, None, 40.0)
    assert {"utilisation", "power", "memory_process"} <= set(old.missing)
    assert (first.index, second.index, second.name) == ("2:0", "2:1", "A100 MIG 3g")
    assert (second.memory_process, second.memory_used, second.power) == (3, 6, 250.5)
    assert second.utilisation is None and "MIG" in second.missing["utilisation"]
    assert first.memory_process is None and "memory_process" in first.missing


def test_no_thread_is_left_behind():
    until(lambda: not [t for t in threading.enumerate() if t.name in ("run observer", "hardware")], 5)


@pytest.mark.slow
def test_edits_of_a_data_view_are_obeyed_and_a_repeat_gets_those_of_then(shared, settings, asked):
    folder = write_digits(shared / "edited", 24)
    view = DataView(folder, journal=shared / "edited.jsonl")
    places = {str(name): i for i, name in enumerate(view.source.names)}
    view.drop(places["digit 1/003.png"])
    view.relabel(places["digit 7/005.png"], "digit 1")
    request = replace(asked, data_dir=str(folder), labels_per_class=0, journal=str(view.journal.path))
    live = start(request, shared / "with edits", blocking=True, where="thread", settings=settings)
    assert live.status.state == "finished", live.status.error
    seen = live.run.predictions().drop_duplicates("case").set_index("case")["label"]
    assert "digit 1/003.png" not in seen.index and seen["digit 7/005.png"] == 0 and len(seen) == 47
    view.drop(places["digit 7/006.png"])
    again = RunFolder.create(shared / "edits again", TEMPLATE, live.again().to_dict())
    again.release()
    assert fulfil(again.path, settings).state == "finished"
    same_predictions(live, again)
    with pytest.raises(Refusal, match="no such journal"):
        start(replace(request, journal="/nowhere.jsonl"), settings=settings)
