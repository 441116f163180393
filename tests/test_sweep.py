"""Many runs: plans that are wrong, processes that die, clusters whose workers come and go. Nothing finished is lost."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

from tljupyter.cli import main
from tljupyter.refusals import Refusal
from tljupyter.reports.plans import read_plan
from tljupyter.reports.sweep import Sweep, begin_sweep, run_sweep
from tljupyter.runs.folder import RunFolder

TINY = Path(__file__).parent / "templates" / "tiny.ipynb"
COMMAND = [sys.executable, "-m", "tljupyter", "sweep"]


def plan_file(path: Path, template: str | Path = TINY, **content) -> Path:
    path.write_text(yaml.safe_dump({"template": str(template), **content}))
    return path


# Plans


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("template: [", "not YAML"),
        ("just words", "holds no plan"),
        ("template: no_such", 'There is no template "no_such"'),
        ("parameters: {seed: 1}", "name a template"),
        ("template: few_digits\nparamters: {seed: 1}", 'unknown word "paramters". Did you mean "parameters"'),
        ("template: few_digits\nparameters: {sed: 1}", 'has no parameter "sed". Did you mean "seed"'),
        ("template: few_digits\ngrid: {seed: 1}", "grid: seed: write a list of values"),
        ("template: few_digits\ngrid: {seed: []}", "grid: seed: write a list of values"),
        (
            "template: few_digits\nparameters: {seed: 1}\ngrid: {seed: [1, 2]}",
            "stands under parameters and under grid",
        ),
        ("template: few_digits\ngrid: {seed: [1, many]}", "seed = 'many' is not accepted"),
        (
            "template: few_digits\ngrid: {draws: [2, 101]}",
            "draws = 101 is not accepted. It takes a whole number",
        ),
        ("template: few_digits\nparameters: [seed]", "parameters: write NAME: VALUE"),
        ("runs: []", "runs: write a list"),
        ("runs: [{template: few_digits}]\ngrid: {seed: [1]}", "grid stands beside runs"),
        (
            "runs: [{template: few_digits}, {template: few_digits, grid: {sed: [1]}}]",
            'plan.yaml, run 2: few_digits has no parameter "sed"',
        ),
    ],
)
def test_a_plan_that_is_wrong_is_refused_before_anything_runs(content, said, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(Refusal) as refused:
        read_plan(path)
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_a_million_runs_are_asked_for_twice(tmp_path, capsys):
    grid = {"seed": list(range(1000)), "draws": list(range(1, 1001))}
    path = plan_file(tmp_path / "plan.yaml", grid=grid)
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "1000 × 1000 = 1,000,000 runs" in told and "--yes" in told and not (tmp_path / "out").exists()
    assert len(read_plan(path, most_runs=10**9)) == 1_000_000


def test_a_template_without_its_parameters_cell_is_refused(tmp_path):
    notebook = json.loads(TINY.read_text())
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if "tags" not in cell["metadata"] or "parameters" not in cell["metadata"]["tags"]
    ]
    (tmp_path / "torn.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(Refusal, match="has no cell tagged parameters with run_dir"):
        read_plan(plan_file(tmp_path / "plan.yaml", "torn.ipynb"))


def test_the_same_run_in_two_parts_is_made_once_and_order_of_parameters_does_not_matter(tmp_path):
    one = {"template": str(TINY), "grid": {"seed": [0, 1], "draws": [1, 2]}}
    two = {"template": str(TINY), "grid": {"draws": [2, 3], "seed": [1]}}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"runs": [one, two]}))
    plan = read_plan(path)
    assert len(plan) == 6 and len(plan.runs()) == 5


def test_ten_thousand_runs_are_checked_value_by_value(tmp_path):
    grid = {"seed": list(range(100)), "draws": list(range(1, 101))}
    begun = time.process_time()
    runs = read_plan(plan_file(tmp_path / "plan.yaml", grid=grid), most_runs=10_000).runs()
    assert len({run.name for run in runs}) == 10_000 and time.process_time() - begun < 20


# One machine


def sweep_of(folder: Path, **content) -> Sweep:
    return begin_sweep(read_plan(plan_file(folder.parent / "plan.yaml", **content)), folder)


def made(sweep: Sweep) -> dict[str, str]:
    "When the finished runs began."
    return {
        run.name: status.started for run in sweep.runs if (status := sweep.status(run)).state == "finished"
    }


@pytest.mark.slow
def test_failed_runs_do_not_stop_the_others_and_are_listed_with_their_logs(tmp_path, capsys):
    path = plan_file(tmp_path / "plan.yaml", grid={"ending": ["good", "error", "refuse", "die", "full"]})
    asked = ["sweep", str(path), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main([*asked, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["states"] == {"failed": 4, "finished": 1} and told["runs"] == 5
    reasons = " ".join(told["failed"].values())
    for reason in ("ZeroDivisionError", "at most 3 can be had", "kernel", "No space left"):
        assert reason in reasons, reasons
    sweep = Sweep(tmp_path / "out")
    assert all((sweep.folder / "logs" / f"{name}.log").exists() for name in told["failed"])
    assert set(sweep.table().columns) == {"ending", "run", "state", "error"}
    before = {run.name: sweep.status(run).started for run in sweep.runs}
    assert main(asked) == 1  # they failed; nothing is made again
    assert before == {run.name: sweep.status(run).started for run in sweep.runs}
    out, err = capsys.readouterr()
    assert out.splitlines() == ["4 failed, 1 finished", str(sweep.folder)] and err.count("failed: ") == 4
    assert main(["sweep", str(sweep.folder), "--status"]) == 0 and "1 finished" in capsys.readouterr().out
    good = made(sweep)
    assert main([*asked, "--retry"]) == 1
    assert good == made(sweep)
    failed = set(told["failed"])
    assert all(before[run.name] != sweep.status(run).started for run in sweep.runs if run.name in failed)


@pytest.mark.slow
def test_a_changed_plan_is_refused_and_what_has_finished_is_kept(tmp_path):
    template = tmp_path / "mine.ipynb"
    shutil.copy(TINY, template)
    run_sweep(sweep := sweep_of(tmp_path / "out", template=template, grid={"seed": [0, 1]}), workers=2)
    before = made(sweep)
    changed = read_plan(plan_file(tmp_path / "plan.yaml", template, grid={"seed": [1, 2]}))
    with pytest.raises(Refusal, match="1 run more, 1 run less.*--changed"):
        begin_sweep(changed, sweep.folder)
    run_sweep(again := begin_sweep(changed, sweep.folder, changed=True))
    assert again.states() == {"finished": 2}
    (same,) = made(again).keys() & before.keys()
    assert made(again)[same] == before[same]
    template.write_text(template.read_text().replace("What it shows", "What it showed"))
    with pytest.raises(Refusal, match="the notebook of .*mine.ipynb was edited"):
        begin_sweep(changed, sweep.folder)


@pytest.mark.slow
def test_two_sweeps_over_one_folder(tmp_path, capsys):
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0]})
    with FileLock(sweep.folder / ".lock"):
        assert main(["sweep", str(sweep.folder)]) == 2
    assert "another sweep is at work here" in capsys.readouterr().err
    assert sweep.states() == {"queued": 1}


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(Refusal, match="holds other files"):
        sweep_of(tmp_path / "out")
    with pytest.raises(Refusal, match="no plan.json"):
        Sweep(tmp_path)
    (tmp_path / "plan.json").write_text('{"what": "ever"}')
    with pytest.raises(Refusal, match="something else's, or damaged"):
        Sweep(tmp_path)


@pytest.mark.slow
def test_a_half_written_run_folder_is_gone_over_and_a_damaged_one_is_listed(tmp_path):
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0, 1]})
    half, damaged = (sweep.place(run) for run in sweep.runs)
    half.mkdir()
    (half / ".params.json.123-456").write_text('{"sche')
    damaged.mkdir()
    (damaged / "status.json").write_text('{"state": "fin')
    run_sweep(sweep)
    assert [sweep.status(run).state for run in sweep.runs] == ["finished", "failed"]
    assert "not the status of a run" in sweep.failures()[damaged.name]


@pytest.mark.slow
def test_a_cancelled_sweep_stops_what_runs_and_goes_on_later(tmp_path):
    path = plan_file(tmp_path / "plan.yaml", parameters={"seconds": 0.4}, grid={"seed": [0, 1, 2]})
    process = subprocess.Popen([*COMMAND, str(path), "--out", str(tmp_path / "out")], stderr=subprocess.PIPE)
    parts = until(lambda: list((tmp_path / "out").glob("*/parts/*")))
    first = RunFolder.open(parts[0].parents[1])
    assert main(["sweep", str(tmp_path / "out"), "--cancel"]) == 0
    assert process.wait(180) == 1
    sweep = Sweep(tmp_path / "out")
    assert first.status.state == "stopped" and sweep.states() == {"queued": 2, "stopped": 1}
    done = len(first.predictions())
    assert done
    run_sweep(sweep, workers=2)
    assert sweep.states() == {"finished": 3} and len(first.predictions()) > done
    assert "computed" in (first.path / "notebook.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_and_its_runs(number, tmp_path):
    path = plan_file(tmp_path / "plan.yaml", parameters={"seconds": 0.5}, grid={"seed": [0, 1]})
    command = [*COMMAND, str(path), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until(lambda: list((tmp_path / "out").glob("*/parts/*")))
    process.send_signal(number)
    process.communicate(timeout=180)
    assert process.returncode == 1
    assert Sweep(tmp_path / "out").states() == {"stopped": 1, "queued": 1}
    assert not working_in(tmp_path)


@pytest.mark.slow
def test_thinned_runs_keep_their_results(tmp_path):
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0, 1, 2]})
    run_sweep(sweep, keep=1)
    whole = [run for run in sweep.runs if (sweep.place(run) / "notebook.ipynb").exists()]
    assert whole == [max(sweep.runs, key=lambda run: sweep.status(run).updated)]
    for run in sweep.runs:
        kept = RunFolder.open(sweep.place(run))
        assert len(kept.predictions()) and kept.read("results.json") and (kept.path / "report.html").exists()
    before = made(sweep)
    run_sweep(sweep, gigabytes=1e-9)
    assert made(sweep) == before and not list(sweep.folder.glob("*/notebook.ipynb"))


def until(found, seconds: float = 180):
    "What is found at last."
    end = time.monotonic() + seconds
    while not (what := found()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return what


def working_in(folder: Path) -> list[psutil.Process]:
    "Processes of reports and kernels that work for a folder."
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            reports = "report" in process.cmdline() and any(str(folder) in word for word in process.cmdline())
            found += [process, *process.children(recursive=True)] if reports else []
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whoever_is_killed_twenty_times_nothing_finished_is_lost_or_made_again(tmp_path):
    grid = {"seed": list(range(8))}
    path = plan_file(
        tmp_path / "plan.yaml", parameters={"draws": 4, "budgets": [5], "seconds": 0.2}, grid=grid
    )
    command = [*COMMAND, str(path), "--out", str(tmp_path / "out"), "--workers", "2", "--retry"]
    chance, finished = random.Random(7), {}

    def begin() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    sweeping, killed = begin(), {"sweep": 0, "report or kernel": 0}
    for _ in range(20):
        until(lambda now=sweeping: working_in(tmp_path / "out") or now.poll() is not None)
        time.sleep(chance.uniform(0.0, 1.5))
        at_work = working_in(tmp_path / "out")
        living = [psutil.Process(sweeping.pid)] if sweeping.poll() is None else []
        victim = chance.choice(
            living if living and (not at_work or chance.random() < 0.3) else at_work or [None]
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            if victim is not None:
                victim.kill()
                killed["sweep" if victim.pid == sweeping.pid else "report or kernel"] += 1
        if victim is not None and victim.pid == sweeping.pid:
            sweeping.wait(10)
        if (tmp_path / "out" / "plan.json").exists():
            now = made(Sweep(tmp_path / "out"))
            assert all(now[name] == started for name, started in finished.items()), (
                "a finished run was touched"
            )
            finished = now
        if sweeping.poll() is not None:
            sweeping = begin()
    assert killed["sweep"] >= 2 and killed["report or kernel"] >= 4, killed
    sweeping.wait(300)
    for _ in range(5):  # what was killed last is failed or interrupted
        if begin().wait(300) == 0:
            break
    sweep = Sweep(tmp_path / "out")
    assert sweep.states() == {"finished": 8}, sweep.failures()
    now = made(sweep)
    assert all(now[name] == started for name, started in finished.items())
    for run in sweep.runs:
        assert len(RunFolder.open(sweep.place(run)).predictions()) == 4 * 8, "draws were lost or made twice"
    assert not working_in(tmp_path / "out")


# A cluster


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    "A scheduler and workers, each a process of its own."
    where = folder / "scheduler.json"
    dask = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    with (folder / "dask.log").open("wb") as log:
        output = {"stdout": log, "stderr": log}
        scheduler = subprocess.Popen([*dask, "--scheduler-file", str(where)], **output)
        until(lambda: where.exists() and where.read_text().strip())
        address = json.loads(where.read_text())["address"]
        worker = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        ]
        started = [subprocess.Popen(worker, cwd=folder, **output) for _ in range(workers)]
        try:
            yield address, started
        finally:
            for process in [*started, scheduler]:
                process.kill()
                process.wait()


def numbers(sweep: Sweep) -> dict[str, object]:
    return {run.name: RunFolder.open(sweep.place(run)).predictions().to_dict("records") for run in sweep.runs}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_loses_a_worker_makes_the_same_runs(tmp_path):
    content = {"parameters": {"draws": 3, "budgets": [5], "seconds": 0.5}, "grid": {"seed": [0, 1, 2, 3, 4]}}
    path = plan_file(tmp_path / "plan.yaml", **content)
    with dask_cluster(tmp_path, 2) as (address, (lost, _)):
        command = [*COMMAND, str(path), "--out", str(tmp_path / "there"), "--cluster", address]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: len(list((tmp_path / "there").glob("*/parts"))) >= 2)
        lost.kill()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    there = Sweep(tmp_path / "there")
    assert there.states() == {"finished": 5} and out.splitlines()[-1] == str(there.folder)
    here = begin_sweep(read_plan(path), tmp_path / "here")
    run_sweep(here, workers=2)
    assert numbers(there) == numbers(here)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_batch_system_by_dask_jobqueue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where job scripts and logs go
    asked = {"cluster": "local", "jobs": 2, "cores": 1, "processes": 1, "memory": "2GB", "interface": "lo"}
    (tmp_path / "jobs.yaml").write_text(yaml.safe_dump(asked))
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0, 1]})
    run_sweep(sweep, cluster=str(tmp_path / "jobs.yaml"))
    assert sweep.states() == {"finished": 2}, sweep.failures()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("cores: 4", "has no line such as cluster: SLURM"),
        ("cluster: SLURN\ncores: 1", 'there is no "SLURN". Did you mean "SLURM"'),
        ("cluster: SLURM\njobs: none", "is not a number of jobs"),
        ("cluster: local\ncores: 1", "does not accept this"),
        ("cluster: [", "not YAML"),
    ],
)
def test_a_cluster_file_that_is_wrong_is_refused(content, said, tmp_path):
    (tmp_path / "jobs.yaml").write_text(content)
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0]})
    with pytest.raises(Refusal) as refused:
        run_sweep(sweep, cluster=str(tmp_path / "jobs.yaml"))
    assert said in str(refused.value)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, capsys):
    sweep = sweep_of(tmp_path / "out", grid={"seed": [0]})
    assert main(["sweep", str(sweep.folder), "--cluster", "tcp://127.0.0.1:9"]) == 2
    assert "tcp://127.0.0.1:9: no Dask scheduler answers there" in capsys.readouterr().err
