"""The command line as a person and a program meet it: exit codes, last lines, interrupts, two at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from test_runs import fill, small_disk  # noqa: F401

from tljupyter import __version__
from tljupyter.cli import main
from tljupyter.runs.folder import RunFolder

TINY = str(Path(__file__).parent / "templates" / "tiny.ipynb")
COMMAND = [sys.executable, "-m", "tljupyter"]


def tljupyter(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    "Run the command to its end."
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


def begun(out: Path, *arguments: str) -> subprocess.Popen:
    "A report that has finished a draw and goes on with the next."
    command = [*COMMAND, "report", TINY, "--out", str(out), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    return process


def kernels_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(process.pid).children() if "ipykernel" in " ".join(child.cmdline())
    ]


# Exit codes and answers


@pytest.mark.slow
def test_a_report_answers_in_its_last_line(tmp_path):
    done = tljupyter("report", TINY, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[0] == "▲ Transfer helps at 5 labels a class."
        and "+26 points of balanced accuracy [+18, +33]" in lines[1]
    )
    assert lines[-1] == str(tmp_path / "out" / "report.html") and Path(lines[-1]).is_file()
    assert (
        "\x1b" not in done.stdout + done.stderr and len(done.stderr.splitlines()) <= 3
    )  # a line a draw at most


@pytest.mark.slow
def test_a_program_gets_one_json_object(tmp_path):
    done = tljupyter("report", TINY, "--json", "--out", str(tmp_path / "out"), "-p", "draws=2")
    answer = json.loads(done.stdout)
    assert answer["folder"] == str(tmp_path / "out") and answer["html"].endswith("report.html")
    assert answer["state"] == "finished" and answer["headline"]["verdict"] == "helps"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY, "-p", "draw=3"], 'Did you mean "draws"'),
        ([TINY, "-p", "draws=many"], "draws = 'many' is not accepted"),
        ([TINY, "-p", "draws"], "NAME=VALUE"),
        ([TINY, "-p", "draws=1", "-p", "draws=2"], "draws is given twice"),
        (["few_digit"], "There is no template"),
        (["no/such.ipynb"], "no such notebook"),
        ([TINY, "--out", f"{TINY}/out"], "cannot write here"),
        ([TINY, "--out", "/proc/out"], "/proc/out"),
        ([], "TEMPLATE"),
    ],
)
def test_bad_input_is_refused_with_2(arguments, message, capsys):
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out


def test_bad_input_is_json_where_json_was_asked_for(capsys):
    assert main(["report", TINY, "-p", "draw=3", "--json"]) == 2
    assert "draws" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow
def test_a_refusal_is_2_and_a_fault_is_1(tmp_path):
    refused = tljupyter("report", TINY, "--out", str(tmp_path / "refused"), "-p", "ending=refuse")
    assert (
        refused.returncode == 2
        and "at most 3 can be had" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    failed = tljupyter("report", TINY, "--out", str(tmp_path / "failed"), "-p", "ending=error")
    assert failed.returncode == 1 and failed.stdout.strip() == str(tmp_path / "failed" / "report.html")
    for text in (
        "ZeroDivisionError: a fault of the template",
        "raise ZeroDivisionError",
        "notebook.ipynb",
        "run.log",
    ):
        assert text in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_full_disk_is_bad_input_that_names_the_place(small_disk):  # noqa: F811
    done = tljupyter("report", TINY, "--out", str(small_disk / "run"), "-p", "draws=200")
    assert done.returncode == 2 and str(small_disk) in done.stderr and "disk is full" in done.stderr
    run = RunFolder.open(small_disk / "run")
    assert run.status.state == "failed" and "full" in run.status.error
    fill(small_disk)
    again = tljupyter("report", TINY, "--out", str(small_disk / "another"))
    assert again.returncode == 2 and str(small_disk / "another") in again.stderr


# Interrupts


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is_and_resume_goes_on(tmp_path):
    process = begun(tmp_path / "out", "-p", "seconds=0.2", "-p", "draws=20")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    run = RunFolder.open(tmp_path / "out")
    assert process.returncode == 1 and run.status.state == "stopped" and "stopped" in err
    assert out.strip() == str(run.path / "report.html")
    assert "This run was stopped" in (run.path / "report.html").read_text()
    kept = run.predictions()["draw"].nunique()
    assert 1 <= kept < 20
    for option, code in (([], 2), (["--resume"], 0)):
        done = tljupyter(
            "report", TINY, "--out", str(run.path), "-p", "seconds=0.2", "-p", "draws=20", *option
        )
        assert done.returncode == code, done.stderr
    assert run.predictions()["draw"].nunique() == 20
    computed = re.search(r"(\d+) computed", (run.path / "run.log").read_text())
    assert computed and int(computed[1]) <= 2 * (20 - kept) + 1


@pytest.mark.slow
def test_a_notebook_that_will_not_stop_is_killed_by_a_second_ctrl_c(tmp_path):
    process = begun(tmp_path / "out", "-p", "ending=stubborn")
    [kernel] = kernels_of(process)
    for _ in range(2):
        time.sleep(2)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 1 and RunFolder.open(tmp_path / "out").status.state == "stopped"
    assert not kernel.is_running()


@pytest.mark.slow
def test_a_killed_command_leaves_an_honest_folder_and_no_kernel(tmp_path):
    process = begun(tmp_path / "out", "-p", "seconds=0.2", "-p", "draws=100")
    [kernel] = kernels_of(process)
    process.kill()
    process.wait()
    run = RunFolder.open(tmp_path / "out")
    assert run.status.state == "failed" and run.status.error == "the process died"
    kernel.wait(15)
    assert run.predictions()["draw"].nunique() >= 1  # what was computed is there


@pytest.mark.slow
def test_a_batch_system_that_ends_a_job_gets_a_stopped_run(tmp_path):
    process = begun(tmp_path / "out", "-p", "seconds=0.2", "-p", "draws=100")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 1 and RunFolder.open(tmp_path / "out").status.state == "stopped"


@pytest.mark.slow
def test_a_second_report_into_the_same_folder_is_refused(tmp_path):
    process = begun(tmp_path / "out", "-p", "seconds=0.2", "-p", "draws=100")
    second = tljupyter("report", TINY, "--out", str(tmp_path / "out"), "-p", "seconds=0.2", "-p", "draws=100")
    assert second.returncode == 2 and "in use by another run" in second.stderr
    assert process.poll() is None and RunFolder.open(tmp_path / "out").status.state == "running"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


# The other commands


def test_version_and_help(capsys):
    assert main(["--version"]) == 0 and __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0 and main([]) == 2 and main(["reprot"]) == 2


def test_templates_are_listed(capsys):
    assert main(["templates", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert main(["templates"]) == 0
    shown = capsys.readouterr().out
    for template in listed:
        assert template["name"] in shown and template["parameters"]["type"] == "object"
        assert all(name in shown for name in template["parameters"]["properties"])


def test_methods_are_listed_by_paradigm_without_importing_torch(capsys):
    assert main(["methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert {"name", "paradigm", "needs", "modality", "paper"} == set(methods[0])
    assert {"name": "target only", "paradigm": "baseline"}.items() <= methods[1].items()
    listing = (
        "import sys; from tljupyter.cli import main; main(['methods']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, timeout=60)


def test_backbones_are_listed(capsys):
    assert main(["backbones", "resnet*", "--json"]) == 0
    names = {one["name"] for one in json.loads(capsys.readouterr().out)}
    assert {"resnet18", "resnet50"} <= names
    assert main(["backbones", "resnet18"]) == 0 and "11.7 M" in capsys.readouterr().out
    assert main(["backbones", "reznet*"]) == 2


def films(folder: Path, *counts: int) -> Path:
    "Class folders of noise."
    for label, count in enumerate(counts):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(100 * label + i).integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(noise).save(folder / f"class {label}" / f"{i}.png")
    return folder


def test_a_clean_folder_passes_the_check(tmp_path, capsys):
    assert main(["check", str(films(tmp_path, 6, 7))]) == 0
    assert "13 items, 13 kept (class 0: 6, class 1: 7)" in capsys.readouterr().out


def test_a_folder_of_data_is_called_by_its_name(tmp_path, monkeypatch, capsys):
    films(tmp_path / "clinic", 6, 7)
    monkeypatch.setenv("TLJUPYTER_DATA_DIR", str(tmp_path))
    assert main(["check", "clinic"]) == 0 and "13 kept" in capsys.readouterr().out


def test_what_is_only_left_out_does_not_stop(tmp_path, capsys):
    (films(tmp_path, 6, 7) / "class 0" / "notes.jpg").write_text("not a picture")
    assert main(["check", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["items"] == 14 and answer["classes"] == {"class 0": 6, "class 1": 7} and not answer["stops"]
    [finding] = answer["findings"]
    assert finding["kind"] == "unreadable" and "notes.jpg" in finding["names"][0]


def test_what_stops_a_report_stops_the_check(tmp_path, capsys):
    films(tmp_path, 6, 1)
    assert main(["check", str(tmp_path)]) == 2
    assert "stops" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "absent")]) == 2 and "absent" in capsys.readouterr().err
