"""The plain object behind the monitor, and the thread that reads for its face: no browser here."""

import json
import re
import threading
import time
from collections import Counter
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from test_live import write_digits

from tljupyter.refusals import Refusal
from tljupyter.reports.clean import clean_html
from tljupyter.runs.control import KINDS
from tljupyter.runs.files import append_line
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.live import LiveRun, start
from tljupyter.runs.request import Request
from tljupyter.runs.watch import thinned
from tljupyter.runs.work import TEMPLATE
from tljupyter.settings import Settings
from tljupyter.widgets.curve_feed import MOST
from tljupyter.widgets.monitor import MOST_A_SECOND, SILENCE, SLOWEST, Monitor, _Pace
from tljupyter.widgets.widget import static_text

HOSTILE = "<img src=x onerror='window.hit=1'>"
STAGES = ("stem", "block2", "pool")


class Told:
    "A run whose files are written by hand, as a worker writes them."

    def __init__(self, place, **request):
        asked = Request(str(place / "digits"), **request).to_dict()
        self.run, self.step = RunFolder.create(place / "told", TEMPLATE, asked), 0
        self.run.tell("running", 0.2, "reading images")

    def line(self, event: str, arm: str = "fine-tuned", **values) -> None:
        row = {"event": event, "arm": arm, "time": "", "step": self.step, "steps": 100}
        append_line(self.run.path / "metrics.jsonl", row | values)

    def costs(self) -> None:
        stages = [
            {"name": name, "parameters": 5 * (name != "pool"), "seconds": 0.1, "values": 4} for name in STAGES
        ]
        plan = f"stages: {json.dumps([{'name': name} for name in STAGES])}"
        about = {
            "reading_seconds": 0.1,
            "input_values": 4,
            "images": 20,
            "views": 1,
            "boundary": 3,
            "plan": plan,
        }
        self.run.write("costs.json", {"stages": stages, **about})

    def train(self, steps: int, arm: str = "fine-tuned", per_epoch: int = 10, **values) -> None:
        for _ in range(steps):
            self.step += 1
            self.line("step", arm, loss=1 / self.step, learning_rate=1e-3, images_per_second=30.0)
            if self.step % per_epoch == 0:
                row = {
                    "epoch": self.step // per_epoch - 1,
                    "loss": 0.5,
                    "accuracy": 0.8,
                    "boundary": 3,
                    "seconds": 1.0,
                }
                self.line("epoch", arm, **(row | values))

    def hardware(self, cpu: float = 50.0) -> None:
        row = {"time": "", "cpu": cpu, "cpu_process": 90.0, "memory_process": 2**30, "memory_used": 2**31}
        append_line(
            self.run.path / "hardware.jsonl", row | {"memory_total": 2**34, "no_gpus": "no driver answers"}
        )


@pytest.fixture
def told(tmp_path):
    made = Told(tmp_path, from_scratch=True, labels_per_class=10)
    yield made
    made.run.end("stopped")  # its readers leave


@pytest.fixture
def monitor(told, tmp_path):
    return Monitor(told.run.path, settings=Settings(runs_dir=tmp_path))


def until(what, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def sent(monitor: Monitor) -> list[set[str]]:
    "What every update of the face carries, from now on."
    updates, face = [], monitor.widget
    send = face._send

    def note(message, buffers=None):
        if message.get("method") == "update":
            updates.append(set(message["state"]) | {path[0] for path in message["buffer_paths"]})
        return send(message, buffers)

    face._send = note
    return updates


def reading(monitor: Monitor) -> bool:
    return monitor._reader is not None and monitor._reader.is_alive()


class TestWhichRun:
    def test_the_newest_live_training_of_the_shelf(self, told, tmp_path):
        settings = Settings(runs_dir=tmp_path)
        with RunFolder.create(tmp_path / "report", "lung_xray"):
            time.sleep(0.01)
        assert Monitor(settings=settings).live.folder == told.run.path
        later = RunFolder.create(tmp_path / "later", TEMPLATE, Request("x").to_dict())
        assert Monitor(settings=settings).live.folder == later.path
        assert Monitor("told", settings=settings).live.folder == told.run.path
        live = LiveRun(told.run.path)
        assert Monitor(live, settings=settings).live is live
        later.release()

    def test_refusals(self, told, tmp_path):
        with pytest.raises(Refusal, match="no live training in"):
            Monitor(settings=Settings(runs_dir=tmp_path / "empty"))
        with pytest.raises(Refusal, match='Did you mean "told"'):
            Monitor("tolt", settings=Settings(runs_dir=tmp_path))
        with RunFolder.create(tmp_path / "report", "lung_xray"), pytest.raises(Refusal, match="not a live"):
            Monitor(tmp_path / "report")

    def test_the_command_can_be_pasted(self, told, tmp_path):
        assert (
            Monitor(told.run.path, settings=Settings(runs_dir=tmp_path))._fixed()["stop"]
            == "tljupyter stop told"
        )
        elsewhere = Monitor(told.run.path, settings=Settings())._fixed()["stop"]
        assert elsewhere == f"tljupyter stop {told.run.path}"  # a terminal may have another working folder
        odd = RunFolder.create(tmp_path / "a run; rm x", TEMPLATE, Request("x").to_dict())
        assert (
            Monitor(odd.path, settings=Settings(runs_dir=tmp_path))._fixed()["stop"]
            == "tljupyter stop 'a run; rm x'"
        )
        odd.release()


class TestReasons:
    def test_of_every_moment(self, told, monitor):
        def why() -> dict[str, str]:
            monitor.refresh()
            return {kind: reason for kind, reason in monitor.reasons().items() if reason}

        assert why() == {"thaw": "Stages are known once the images are read."}
        told.costs()
        told.line("started")
        told.run.tell("running", 0.3, "fine-tuned: epoch 1")
        assert why() == {} and monitor.frozen == ("stem", "block2") and monitor.arm == "fine-tuned"
        told.line("order", id="a", kind="thaw", value=["stem", "block2"], outcome="applied")
        assert why() == {"thaw": "Every stage trains."}
        told.line("finished")
        said = set(why().values())
        assert said == {"fine-tuned is finished; what follows takes no such order."}
        told.line("started", "from scratch")
        assert set(why()) == {"thaw", "rate", "epochs"} and "is a baseline" in why()["rate"]
        told.run.tell("stopping")
        assert why()["stop"] == "It is stopping."
        told.run.end("stopped", "stopped by an order")
        assert why() == dict.fromkeys(KINDS, "The run has ended (stopped): nobody is left to obey.")

    def test_a_resumed_run_has_its_stages_frozen_again(self, told, monitor):
        told.costs()
        told.line("started")
        told.line("order", id="a", kind="thaw", value=["stem"], outcome="applied")
        monitor.refresh()
        assert monitor.frozen == ("block2",)
        told.line("started")
        monitor.refresh()
        assert monitor.frozen == ("stem", "block2")


class TestMessages:
    def test_orders_are_written_and_nobody_is_waited_for(self, told, monitor):
        began = time.monotonic()
        for message in (
            {"do": "pause"},
            {"do": "resume"},
            {"do": "thaw", "stages": ["stem", "block2"]},
            {"do": "rate", "value": 0.5},
            {"do": "epochs", "value": 3},
            {"do": "stop"},
        ):
            assert monitor.receive(message) is None
        assert time.monotonic() - began < 1
        kinds = [(order.kind, order.value) for order in monitor.live.control.orders()]
        assert kinds[2:5] == [("thaw", ("stem", "block2")), ("rate", 0.5), ("epochs", 3)]
        assert monitor.orders()[0] == "○ Stop: written, not yet received" and len(monitor.orders()) == 6

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ({"do": "rate", "value": 0}, "give a factor above 0"),
            ({"do": "epochs", "value": 1.5}, "give a whole number"),
            ({"do": "rate", "value": "fast"}, "does not know how to rate"),
            ({"do": "thaw", "stages": []}, "thaw needs the names of stages"),
            ({"do": "thaw", "stages": [1]}, "thaw needs the names of stages"),
            ({"do": "weigh", "stages": ["stem"]}, "costs are known once the images have been read"),
            ({"do": "obey"}, "does not know how to obey"),
        ],
    )
    def test_what_nobody_could_obey_is_refused(self, monitor, message, words):
        with pytest.raises(Refusal, match=re.escape(words)):
            monitor.receive(message)
        assert monitor.live.control.orders() == ()

    def test_a_thaw_is_weighed_until_it_is_decided(self, told, monitor):
        told.costs()
        told.line("started")
        monitor.receive({"do": "weigh", "stages": ["block2"]})
        shown = monitor.parts()["stages"]()
        assert shown["weighed"]["again"] and shown["weighed"]["text"].startswith(
            "Thaw block2: 5 parameters more"
        )
        monitor.receive({"do": "weigh", "stages": []})
        assert monitor.weighed is None
        monitor.weigh("block2")
        monitor.thaw("block2")
        assert monitor.weighed is None
        told.line("order", id="x", kind="thaw", value=["stem"], outcome="applied")
        monitor.refresh()
        assert not monitor.parts()["stages"]()["weighed"]
        monitor.weigh("block2")  # stem computes again already, before its event is told
        assert not monitor.parts()["stages"]()["weighed"]["again"]


class TestReader:
    @pytest.mark.slow
    def test_at_most_ten_updates_a_second_and_only_what_changed(self, told, monitor):
        told.line("started")
        updates, stop = sent(monitor), time.monotonic() + 2
        while time.monotonic() < stop:
            told.train(1)
            time.sleep(0.005)
        assert 6 <= len(updates) <= 2.2 * MOST_A_SECOND
        assert all("machine" not in names and "fixed" not in names for names in updates)
        assert sum("curves" in names for names in updates) < len(updates)  # thinned anew now and then only
        time.sleep(0.5)  # the last of it
        updates.clear()
        told.hardware()
        until(lambda: updates)
        assert updates == [{"machine"}]
        updates.clear()
        time.sleep(0.5)
        assert updates == []
        told.run.end("finished")
        until(lambda: not reading(monitor))
        assert monitor.status.state == "finished" and monitor.widget.state["words"] == "✓ finished"

    def test_an_answer_to_our_order_comes_at_once_and_many_do_not_exceed_the_limit(self, told, monitor):
        told.line("started")
        updates = sent(monitor)
        order = monitor.rate(0.5)
        updates.clear()
        began = time.monotonic()
        told.line("order", id=order.id, kind="rate", value=0.5, outcome="applied")
        until(lambda: monitor.widget.orders["all"][0].startswith("✓ Learning rate × 0.5: applied at step"))
        assert time.monotonic() - began < 0.15
        pace = _Pace()
        moments, end = [], time.monotonic() + 1.5
        while time.monotonic() < end:
            if pace.next(urgent=True) <= 0:
                pace.note()
                moments.append(time.monotonic())
            time.sleep(0.005)
        assert MOST_A_SECOND < len(moments) <= 2 * MOST_A_SECOND
        assert all(
            later - sooner >= 1 for sooner, later in zip(moments, moments[MOST_A_SECOND:], strict=False)
        )

    def test_it_slows_down_when_nobody_looks(self):
        pace = _Pace()
        pace.note()
        assert 0 < pace.next(urgent=False) <= 0.2
        pace.heard -= 10 * SILENCE
        assert 9.9 < pace.next(urgent=False) < 10.1 and pace.next(urgent=True) == 0
        pace.heard -= 1e6
        assert pace.next(urgent=False) == pytest.approx(SLOWEST, abs=0.1)

    def test_it_ends_with_its_face_and_comes_back_with_a_resumed_run(self, told, monitor):
        face = monitor.widget
        assert reading(monitor) and monitor.widget is face
        told.run.end("stopped")
        until(lambda: not reading(monitor))
        again = RunFolder.create(told.run.path, TEMPLATE, told.run.parameters, resume=True)
        again.tell("running")
        monitor._heard(face, {"do": "here"}, [])
        until(lambda: face.state["state"] == "running")
        assert reading(monitor)
        face.close()
        until(lambda: not reading(monitor), 3)
        again.release()

    def test_a_damaged_file_is_told_and_forgotten(self, told, monitor):
        monitor._repr_mimebundle_()
        good = (told.run.path / "status.json").read_bytes()
        (told.run.path / "status.json").write_text("{torn")
        until(lambda: "status.json: not the status of a run" in monitor.widget.doing["trouble"])
        (told.run.path / "status.json").write_bytes(good)
        told.hardware()
        until(lambda: monitor.widget.doing["trouble"] == "")
        told.run.end("finished")
        until(lambda: not reading(monitor))

    def test_orders_of_many_threads_are_all_written(self, told, monitor):
        monitor._repr_mimebundle_()
        threads = [threading.Thread(target=lambda: [monitor.rate(0.9) for _ in range(5)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(monitor.orders()) == len(monitor.live.control.orders()) == 20
        told.run.end("stopped")
        until(lambda: not reading(monitor))

    def test_a_folder_that_is_gone(self, told, monitor):
        folder = told.run.path
        told.run.release()
        folder.rename(folder.with_name("elsewhere"))
        monitor.refresh()
        assert monitor.status.state == "failed" and monitor.status.error == "the folder of the run is gone"
        assert "is gone" in monitor.static_html()


class TestFaces:
    def test_state_in_numbers_and_words(self, told, monitor):
        told.line("started")
        told.train(20, valid_loss=0.4, valid_balanced_accuracy=0.9, best=1.0)
        told.run.tell("running", 0.42, "fine-tuned: epoch 2", images_per_second=1240.4, seconds_left=70.2)
        monitor.refresh()
        state = monitor.parts()["state"]()
        assert state["words"] == "● training" and state["speed"] == "1,240 images/s" and state["rate"] == 1e-3
        assert (
            state["left"] == "1 min 10 s left of fine-tuned, then from scratch" and state["progress"] == 0.42
        )
        latest = monitor.parts()["latest"]()["fine-tuned"]
        assert latest["best"] == [20, 0.4, 0.9] and latest["per_epoch"] == 10

    def test_why_it_failed_and_what_to_do(self, told, monitor):
        reason = "Out of memory with batch_size=16; batch_size=4 fits here (tried)."
        told.run.end("failed", error=reason)
        monitor.refresh()
        assert (
            monitor.parts()["state"]()["error"] == reason and f"✕ failed: {reason}" in monitor.static_html()
        )

    def test_the_still_form_is_clean_small_and_has_the_end_in_it(self, tmp_path):
        told = Told(tmp_path, backbone=HOSTILE)
        monitor = Monitor(told.run.path)
        told.line("started")
        told.train(60, valid_loss=0.4, valid_balanced_accuracy=0.9, best=1.0)
        told.line("order", id="a", kind="thaw", value=[HOSTILE], outcome="refused", reason=f"no {HOSTILE}")
        told.hardware()
        running = monitor.static_html()
        assert "● training: 20% done; reading images" in running and "image/png" not in running
        compared = {"metric": "balanced_accuracy", "arm": "fine-tuned", "baseline": "linear probe"}
        row = compared | {"labels_per_class": 10, "gain": 0.05, "low": 0.01, "high": 0.09, "verdict": "helps"}
        told.run.write("results.json", {"headline": compared, "comparisons": [row]})
        told.line("finished")
        told.run.end("finished")
        page = clean_html(monitor.static_html())
        assert "▲ Transfer helps at 10 labels a class." in page and "data:image/png" in page
        assert "CPU: 50 % busy on average, memory of this run 1.0 GiB at most" in page
        assert HOSTILE not in page and "&lt;img src=x" in page and len(page) < 100_000
        assert "Training over 6 epochs" in page  # what a reader who does not see it should know

    def test_the_log_shows_its_end(self, told, monitor):
        (told.run.path / "run.log").write_text("x" * 50_000 + "\nlast line\n")
        shown = monitor.parts()["log"]()
        assert shown.endswith("last line\n") and len(shown) <= 20_000

    @pytest.mark.slow
    def test_two_hundred_thousand_points_are_few_in_a_browser(self, told, monitor):
        row = {"event": "step", "arm": "fine-tuned", "time": "", "steps": 200_000, "learning_rate": 1e-3}
        lines = (json.dumps(row | {"step": i, "loss": 1 / (i + 1)}) for i in range(200_000))
        (told.run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        monitor.refresh()
        x, y = (
            np.frombuffer(part, "<f4") for part in monitor.parts()["curves"]()["fine-tuned"]["training loss"]
        )
        assert len(x) <= MOST and y[0] == 1 and x[-1] == 199_999
        began = time.perf_counter()
        for _ in range(20):
            told.step = 200_000
            told.train(1)
            monitor.refresh()
            monitor._drawn()
        assert (time.perf_counter() - began) / 20 < 0.05


@pytest.mark.parametrize("most", [4, 5, 50, 501])
def test_thinned_keeps_peaks_and_its_past(most):
    rng = np.random.default_rng(0)
    for n in (1, 3, 4, 5, 7, 64, 65, 1000, 4097):
        x, y = np.arange(n), rng.normal(size=n)
        few_x, few_y = thinned(x, y, most)
        assert len(few_x) <= most and (np.diff(few_x) > 0).all() and (few_x[0], few_x[-1]) == (0, n - 1)
        assert few_y.max() == y.max() and few_y.min() == y.min() and (y[few_x] == few_y).all()


@pytest.mark.parametrize("name", ["data_view", "freeze_tree", "monitor", "picker"])
def test_no_name_is_declared_twice_in_a_module(name):
    text = static_text(f"{name}.js")
    assert not re.search(r"^import ", text, re.MULTILINE)
    declared = re.findall(r"^(?:async )?(?:const|let|class|function) (\w+)", text, re.MULTILINE)
    assert [one for one, times in Counter(declared).items() if times > 1] == []
    assert (resources.files("tljupyter.widgets") / "static" / f"{name}.css").is_file()


@pytest.mark.slow
def test_a_killed_worker_is_told_with_its_cause(tmp_path):
    write_digits(tmp_path / "digits", 30)
    settings = Settings(cache_dir=tmp_path / "cache", runs_dir=tmp_path / "runs", device="cpu", threads=1)
    asked = Request(str(tmp_path / "digits"), "digits_convnet", "random", labels_per_class=10, epochs=100_000)
    monitor = Monitor(start(asked, blocking=False, settings=settings), settings=settings)
    monitor._repr_mimebundle_()
    until(lambda: monitor.widget.state["words"] == "● training", 60)
    monitor.live._process.kill()
    until(lambda: monitor.widget.state["ended"])
    assert (
        "killed by SIGKILL" in monitor.widget.state["error"] and monitor.widget.state["words"] == "✕ failed"
    )
    assert (
        replace(Monitor(settings=settings).status, pid=0).error == "the process died"
    )  # who did not start it
    until(lambda: not reading(monitor))
