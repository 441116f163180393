"""The training monitor in a real JupyterLab on real worker processes: every order, a busy kernel, a killed one, a full disk."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_live import write_digits
from test_runs import fill, small_disk  # noqa: F401 a fixture

from tljupyter.runs.control import Control
from tljupyter.runs.files import read_lines
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.live import start
from tljupyter.runs.request import Request
from tljupyter.runs.status import Status
from tljupyter.settings import Settings

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hit=1'>"
SETUP = """
from pathlib import Path
from tljupyter.backbones.weights import load_backbone
from tljupyter.freezing import FreezePlan
from tljupyter.runs.live import start
from tljupyter.runs.request import Request
from tljupyter.settings import load_settings
from tljupyter.widgets.monitor import Monitor

settings, digits = load_settings({"device": "cpu", "threads": 1}), Path("digits").absolute()
last = FreezePlan.last(load_backbone("digits_convnet", "random"), 1).to_yaml()

def endless(name):
    asked = Request(str(digits), "digits_convnet", "random", last, labels_per_class=20, epochs=100_000)
    return start(asked, settings.runs_dir / name, blocking=False, settings=settings)
"""
# A run that only tells: names that are an attack, a card with little to say and a slice of another one.
TOLD = f'''
import json, os
from tljupyter.runs.files import append_line
from tljupyter.runs.folder import RunFolder
told = RunFolder.create(settings.runs_dir / "told {HOSTILE}", "live_training", Request(str(digits)).to_dict())
told.tell("running", 0.5, "fine-tuned: {HOSTILE}")
stages = [{{"name": name + "{HOSTILE}", "parameters": 10, "seconds": 0.01, "values": 4}} for name in ("stem", "top")]
plan = FreezePlan.from_yaml("stages: " + json.dumps([{{"name": stage["name"]}} for stage in stages])).to_yaml()
costs = {{"reading_seconds": 0.1, "input_values": 4, "images": 20, "views": 1, "boundary": 2, "plan": plan}}
told.write("costs.json", {{"stages": stages, **costs}})
for arm in ("fine-tuned", "other {HOSTILE}"):
    about = {{"arm": arm, "time": "", "steps": 40}}
    append_line(told.path / "metrics.jsonl", about | {{"event": "started", "step": 0}})
    for step in range(1, 31):
        row = about | {{"step": step, "loss": 2.0 / step}}
        append_line(told.path / "metrics.jsonl", row | {{"event": "step", "learning_rate": 1e-4}})
        if step % 10 == 0:
            epoch = {{"event": "epoch", "epoch": step // 10 - 1, "accuracy": step / 40, "valid_loss": 3.0 / step, "boundary": 2}}
            append_line(told.path / "metrics.jsonl", row | epoch | {{"valid_balanced_accuracy": step / 50, "best": 1.0 * (step == 20)}})
    append_line(told.path / "metrics.jsonl", about | {{"event": "thawed", "step": 20, "boundary": 1}})
gib = 2 ** 30
whole = {{"index": "0", "name": "H200", "utilisation": 91.0, "memory_process": 33 * gib, "memory_used": 34 * gib, "memory_total": 139 * gib, "temperature": 58.0, "power": 612.0}}
part = {{"index": "1:0", "name": "A100 MIG {HOSTILE}", "memory_used": 5 * gib, "memory_total": 20 * gib, "missing": {{"utilisation": "a slice (MIG) does not say how busy it is"}}}}
for cpu in (20.0, 80.0, 41.0):
    append_line(told.path / "hardware.jsonl", {{"time": "", "cpu": cpu, "cpu_process": 96.0, "memory_process": 2 * gib, "memory_used": 9 * gib, "memory_total": 24 * gib, "gpus": [whole, part]}})
'''


def panel(page, name: str):
    "The monitor of a run."
    return page.view.get_by_role("region", name=f"Training {name}", exact=True)


def button(monitor, name: str):
    return monitor.get_by_role("button", name=name, exact=True)


def told(folder: Path, outcome: str = "applied") -> list[tuple]:
    "Orders of a run as its own file tells them."
    rows = read_lines(folder / "metrics.jsonl")
    return [
        (row["kind"], row["value"]) for row in rows if row["event"] == "order" and row["outcome"] == outcome
    ]


def until(what, seconds: float = 20.0):
    "Wait for something to become true."
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.03)
    return found


def status(folder: Path) -> Status:
    return RunFolder.open(folder).status


def epochs(folder: Path) -> int:
    lines = folder / "metrics.jsonl"
    return lines.read_bytes().count(b'"event": "epoch"') if lines.exists() else 0


@pytest.fixture(scope="module")
def lab_with_digits(lab):
    "Two classes of digits beside the notebooks, one under a name that is an attack."
    write_digits(lab.folder / "digits", 60)
    (lab.folder / "digits" / "digit 1").rename(lab.folder / "digits" / HOSTILE)
    return lab


@pytest.fixture(scope="module")
def page(lab_with_digits):
    "A notebook with three monitors. Leaving it looks for console errors, requests to elsewhere and cells that failed."
    cells = (
        SETUP,
        'first = Monitor(endless("first"))\nfirst',
        'second = Monitor(endless("second"))\nsecond',
        f"{TOLD}\nthird = Monitor(told.path)\nthird",
    )
    lab = lab_with_digits
    with lab.open(lab.write("monitors", *cells)) as opened, none_left(lab, "first", "second"):
        opened.run_all()
        for name in ("first", "second"):
            panel(opened, name).get_by_text("● training").wait_for(timeout=60_000)
        yield opened


@contextlib.contextmanager
def none_left(lab, *names: str):
    "Workers outlive everything; not these."
    try:
        yield
    finally:
        for name in names:
            folder = lab.runs / name
            if folder.exists() and not status(folder).ended:
                os.kill(status(folder).pid, signal.SIGKILL)


def test_every_order_is_acknowledged_and_obeyed(page, lab):
    monitor, folder = panel(page, "first"), lab.runs / "first"
    button(monitor, "Pause").click()
    monitor.get_by_text(re.compile("✓ Pause: applied at step")).first.wait_for()
    monitor.get_by_text("‖ paused").wait_for()
    assert told(folder) == [("pause", None)] and status(folder).state == "paused"
    before = epochs(folder)
    button(monitor, "Resume").click()
    monitor.get_by_text("● training").wait_for()
    until(lambda: epochs(folder) > before)

    monitor.get_by_label("Factor on the learning rate").fill("0.25")
    button(monitor, "Learning rate ×").click()
    monitor.get_by_text(re.compile(r"✓ Learning rate × 0\.25: applied")).first.wait_for()
    monitor.get_by_label("Epochs more").fill("7")
    button(monitor, "Add epochs").click()
    monitor.get_by_text("✓ + 7 epochs: applied").first.wait_for()
    until(lambda: read_lines(folder / "metrics.jsonl")[-1].get("steps") == 2 * 100_007)

    # Below the cached boundary: the cost first, then a second yes
    stages = monitor.get_by_label("Stages to thaw")
    assert stages.locator("option").all_inner_texts() == ["block2", "stem", "all 2 frozen stages"]
    stages.select_option(label="stem")
    monitor.get_by_text("Thaw stem: 176 parameters more train; features are computed again").wait_for()
    button(monitor, "Thaw").click()
    button(monitor, "Leave it frozen").click()
    monitor.get_by_text("176 parameters more").wait_for(state="hidden")
    assert ("thaw", ["stem"]) not in told(folder, "received")
    button(monitor, "Thaw").click()
    button(monitor, "Thaw and compute again").click()
    monitor.get_by_text("✓ Thaw stem: applied at step").first.wait_for()
    assert stages.locator("option").all_inner_texts() == ["block2"]
    button(monitor, "Thaw").click()  # nothing is computed again: at once
    monitor.get_by_text("✓ Thaw block2: applied at step").first.wait_for()
    monitor.get_by_text("thaw: Every stage trains.").wait_for()
    monitor.locator(".tl-tm-thaws line").nth(3).wait_for(state="attached")  # two thaws on two plots
    kinds = (
        ("pause", None),
        ("resume", None),
        ("rate", 0.25),
        ("epochs", 7),
        ("thaw", ["stem"]),
        ("thaw", ["block2"]),
    )
    assert told(folder) == list(kinds)

    # What nobody could obey is refused with its reason and stays in its field
    monitor.get_by_label("Factor on the learning rate").fill("0")
    button(monitor, "Learning rate ×").click()
    monitor.get_by_text("rate = 0; give a factor above 0, such as 0.1.").wait_for()
    assert monitor.get_by_label("Factor on the learning rate").get_attribute("aria-invalid") == "true"
    assert (
        told(folder) == list(kinds) and told(lab.runs / "second", "received") == []
    )  # nor did the other hear


def test_orders_of_others_are_shown_and_refusals_too(page, lab):
    monitor, control = panel(page, "first"), Control(lab.runs / "first")
    control.thaw("stam")
    monitor.get_by_text(
        '✕ Thaw stam: refused: there is no stage "stam". Did you mean "stem"?'
    ).first.wait_for()
    monitor.get_by_text(re.compile(r"All orders \(\d")).click()
    assert monitor.locator("details li").first.inner_text().startswith("✕ Thaw stam")


def test_values_are_read_by_pointer_and_by_arrow_keys(page):
    monitor = panel(page, f"told {HOSTILE}")
    reader = monitor.get_by_role("slider", name="Curves")
    row = monitor.locator(".tl-tm-rows li").first
    assert (
        "epoch 3 of 4, step 30 · loss 0.0667, 0.100 held out · accuracy 0.750, 0.600 held out · ◆ epoch 2"
        in row.inner_text()
    )
    reader.focus()
    for key in ("End", "ArrowLeft", "ArrowLeft"):
        page.view.keyboard.press(key)
    assert reader.get_attribute("aria-valuetext").startswith("fine-tunedepoch 3, step 28 · loss 0.0714")
    page.view.keyboard.press("Home")
    assert "step 1 · loss 2.00" in row.inner_text() and float(
        reader.get_attribute("aria-valuenow")
    ) == pytest.approx(0.1)
    page.view.keyboard.press("Escape")
    box = monitor.locator(".tl-tm-panel svg").first.bounding_box()
    page.view.mouse.move(box["x"] + 44 + (box["width"] - 54) / 2, box["y"] + 60)
    assert "epoch 2, step 15 · loss 0.133" in row.inner_text()  # half way to epoch 3
    assert monitor.locator(".tl-tm-dots circle").count() >= 2
    page.view.mouse.move(0, 0)
    assert "step 30" in row.inner_text() and monitor.locator(".tl-tm-marks path").count() == 4
    monitor.get_by_label("loss on a log scale").check()
    page.view.wait_for_function(
        "() => [...document.querySelectorAll('.tl-tm-names')].some(g => [...g.children].map(t => t.textContent).join() == '0.1,0.3,1')"
    )


def test_cards_say_what_they_know(page):
    text = panel(page, f"told {HOSTILE}").locator(".tl-tm-machine").inner_text()
    assert re.sub(r"\s+", " ", text) == (
        "CPU 41 % memory 9.0 of 24 GiB, 2.0 by this run this run computes on 1.0 cores "
        "GPU 0 · H200 91 % memory 34 of 139 GiB, 33 by this run 612 W 58 °C "
        f"GPU 1:0 · A100 MIG {HOSTILE} memory 5.0 of 20 GiB how busy it is: a slice (MIG) does not say how busy it is"
    )
    assert "No graphics card: " in panel(page, "first").locator(".tl-tm-machine").inner_text()


def test_names_stay_text(page):
    monitor = panel(page, f"told {HOSTILE}")
    assert monitor.get_by_label("Stages to thaw").locator("option").first.inner_text() == f"top{HOSTILE}"
    monitor.get_by_text(f"fine-tuned: {HOSTILE}").wait_for()
    assert f"other {HOSTILE}" in monitor.locator(".tl-tm-rows").inner_text()
    assert page.view.evaluate("window.hit === undefined") and page.view.locator(".tl-panel img").count() == 0


def test_by_keyboard_alone(page, lab):
    keys, folder = page.view.keyboard, lab.runs / "first"
    button(panel(page, "first"), "Pause").focus()
    keys.press("Enter")
    until(lambda: status(folder).state == "paused")
    panel(page, "first").get_by_text("‖ paused").wait_for()
    keys.press(" ")
    until(lambda: status(folder).state == "running")
    while page.view.evaluate("document.activeElement.getAttribute('aria-label')") != "Epochs more":
        keys.press("Tab")
    keys.press("Control+a")
    keys.type("3")
    keys.press("Shift+Tab")
    keys.press("Enter")
    until(lambda: ("epochs", 3) in told(folder))
    for key in ("a", "b", "x", "m", "d", "d"):  # which the notebook would make cells of, or cut them
        keys.press(key)
    assert page.view.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length") == 4


@pytest.mark.parametrize(("theme", "width"), [("light", 900), ("dark", 900), ("dark", 390), ("light", 390)])
def test_it_is_readable(page, lab, tmp_path, theme, width):
    page.theme(theme)
    page.panel(width, 1300)
    page.view.wait_for_timeout(300)
    for number, name in enumerate(("first", f"told {HOSTILE}")):
        panel(page, name).scroll_into_view_if_needed()
        panel(page, name).screenshot(path=tmp_path / f"{theme}_{width}_{number}.png")
    assert page.overflowing() == [[], [], []]
    contrast, text = page.faintest()
    assert contrast >= 4.5, text


def test_it_is_back_after_a_reload(page, lab):
    page.theme("light")
    page.panel(900)
    page.command("docmanager:save")
    began = time.monotonic()
    page.reload()
    button(panel(page, "first"), "Pause").wait_for()
    seconds = time.monotonic() - began
    button(panel(page, "first"), "Pause").click()
    until(lambda: status(lab.runs / "first").state == "paused", 5)
    button(panel(page, "first"), "Resume").click()
    until(lambda: status(lab.runs / "first").state == "running", 5)
    assert seconds < 5 * patience(), f"{seconds:.1f} s"


def patience() -> float:
    "How many times longer than alone things may take here: as many as processes want a processor."
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_a_busy_kernel_is_said_and_a_command_line_acts(page, lab):
    monitor, folder = panel(page, "second"), lab.runs / "second"
    monitor.get_by_text("● training").wait_for()
    page.run_cell("import time\nfor _ in range(90): time.sleep(0.1)", wait=False)
    page.view.wait_for_timeout(300)
    button(monitor, "Pause").click()
    said = monitor.get_by_text("The kernel does not answer: a cell is running, and orders from here wait")
    said.wait_for()
    command = said.inner_text().split("this acts at once: ")[1]
    assert command == "tljupyter stop second" and told(folder, "received") == []
    stop = [sys.executable, "-m", *shlex.split(command)]
    environment = {**os.environ, "TLJUPYTER_RUNS_DIR": str(lab.runs)}
    done = subprocess.run(stop, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("stop: applied at step")
    monitor.get_by_text("✓ Stop: applied at step").first.wait_for()  # shown while the cell runs
    assert page.view.evaluate("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status") == "busy"
    monitor.get_by_text(
        re.compile("nobody is left to obey")
    ).first.wait_for()  # also the pause, after the cell
    assert page.ask("second.status.state") == "stopped" and told(folder) == [("stop", None)]
    assert all(
        button(monitor, name).is_disabled() for name in ("Pause", "Stop, keep the best", "Thaw", "Add epochs")
    )
    monitor.get_by_text(
        re.compile(r"points of balanced accuracy \[.*fine-tuned against linear probe")
    ).wait_for()


def test_a_full_disk_is_told_with_the_fix(page, small_disk):  # noqa: F811
    subprocess.run(["mount", "-o", "remount,size=400k", str(small_disk)], check=True)
    folder = small_disk / "full"
    page.run_cell(f"full = Monitor(endless({str(folder)!r}))\nfull")
    monitor = panel(page, "full")
    until(lambda: epochs(folder) > 3, 60)
    fill(small_disk)
    monitor.get_by_role("alert").get_by_text("the disk is full; make room and resume the run").wait_for()
    monitor.get_by_text("✕ failed").wait_for()
    page.ask("full.live._process.wait(20)")  # the disk can be taken away


def test_stop_keeps_the_best_and_says_what_it_was_good_for(page, lab):
    monitor, folder = panel(page, "first"), lab.runs / "first"
    button(monitor, "Stop, keep the best").click()
    monitor.get_by_text("✓ Stop: applied at step").first.wait_for()
    monitor.get_by_text("□ stopped").wait_for()
    assert status(folder).state == "stopped" and (folder / "model.safetensors").exists()
    monitor.get_by_text(re.compile("^stopped by an order; epoch .* is kept")).wait_for()
    monitor.get_by_text("The run has ended (stopped): nobody is left to obey.", exact=True).wait_for()


def test_a_killed_kernel_leaves_the_run_and_the_same_cell_finds_it_again(lab_with_digits):
    lab = lab_with_digits
    notebook = lab.write("restarted", SETUP, 'endless("outlives")', "monitor = Monitor()\nmonitor")
    with lab.open(notebook, quiet=False) as page, none_left(lab, "outlives"):
        page.run_all()
        monitor, folder = panel(page, "outlives"), lab.runs / "outlives"
        until(lambda: epochs(folder), 60)
        os.kill(page.ask("__import__('os').getpid()"), signal.SIGKILL)
        page.view.get_by_role("button", name="Ok", exact=True).click()  # JupyterLab says that it has died
        monitor.get_by_text("The kernel does not answer").wait_for()  # without being asked
        before = epochs(folder)
        page.ready()
        for cell in (0, 2):  # not the one that started the run
            page.view.evaluate("at => { jupyterapp.shell.currentWidget.content.activeCellIndex = at }", cell)
            page.command("notebook:run-cell")
        monitor.get_by_text("● training").wait_for()
        assert epochs(folder) > before and page.ask("monitor.live._process is None")
        button(monitor, "Stop, keep the best").click()
        monitor.get_by_text("✓ Stop: applied at step").first.wait_for()
        until(lambda: status(folder).ended)
        monitor.get_by_text("□ stopped").wait_for()
        assert status(folder).state == "stopped" and page.failed_cells() == []
        assert page.outside == [] and page.complaints == []


@pytest.fixture(params=["6.*", "7.3.*", ""], ids=["6", "7.3", "installed"])
def kernel(request, lab, tmp_path) -> str:
    "The name of a kernel of some version of ipykernel; they differ in who hears a click."
    if not request.param:
        return "python3"
    packages = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--timeout", "10", "--retries", "1"]
    wanted = f"ipykernel=={request.param}"
    if subprocess.run(
        [*command, "--no-deps", "--target", str(packages), wanted], capture_output=True
    ).returncode:
        pytest.skip(f"ipykernel {request.param} cannot be installed")
    name = f"ipykernel-{request.param.rstrip('.*')}"
    lab.add_kernel(name, packages)
    return name


@pytest.mark.slow
def test_clicks_are_heard_by_every_ipykernel(lab_with_digits, kernel, capsys):
    lab, name = lab_with_digits, f"heard by {kernel}"
    asked = Request(
        str(lab.folder / "digits"), "digits_convnet", "random", labels_per_class=20, epochs=100_000
    )
    settings = Settings(cache_dir=lab.runs.parent / "cache", runs_dir=lab.runs, device="cpu", threads=1)
    code = f"from tljupyter.widgets.monitor import Monitor\nmonitor = Monitor({name!r})\nmonitor"
    with none_left(lab, name):
        start(asked, lab.runs / name, blocking=False, settings=settings)
        with lab.open(lab.write(name, code, kernel=kernel)) as page:
            page.run_all()
            monitor, seconds = panel(page, name), {}
            monitor.get_by_text("● training").wait_for(timeout=60_000)
            for order, words in (("Pause", "Pause"), ("Resume", "Resume"), ("Stop, keep the best", "Stop")):
                began = time.monotonic()
                button(monitor, order).click()
                monitor.get_by_text(f"✓ {words}: applied at step").first.wait_for()
                seconds[words] = round(time.monotonic() - began, 2)
                if (
                    words == "Resume"
                ):  # now beside a cell: a kernel with subshells acts, others say that it waits
                    page.run_cell("import time\nfor _ in range(30): time.sleep(0.1)", wait=False)
                    button(monitor, "Pause").click()
                    paused = monitor.get_by_text("‖ paused")
                    monitor.get_by_text("The kernel does not answer").or_(paused).first.wait_for()
                    paused.wait_for()
            version = page.ask("__import__('ipykernel').__version__")
            monitor.get_by_text("□ stopped").wait_for()
        with capsys.disabled():
            print(f"\nipykernel {version}: seconds from click to acknowledgement {seconds}")
    assert version.startswith(kernel.removeprefix("ipykernel-")) or kernel == "python3"
    assert [kind for kind, _ in told(lab.runs / name)] == ["pause", "resume", "pause", "stop"]
    assert max(seconds.values()) < 2
