"""What a sweep adds to its runs, what a second worker gains here and on a cluster, and the index of ten thousand runs."""

import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from distributed import LocalCluster

from tests.bench import Options, Row
from tljupyter.reports.plans import read_plan
from tljupyter.reports.stamp import report_words
from tljupyter.reports.sweep import Sweep, begin_sweep, run_sweep
from tljupyter.runs.status import Status, write_status
from tljupyter.settings import Settings

TINY = Path(__file__).parent.parent / "templates" / "tiny.ipynb"
DIGITS = {"template": "few_digits", "parameters": {"draws": 2, "epochs": 1}, "grid": {"seed": [0, 1, 2, 3]}}
MANY = 10_000
ONE_THREAD = Settings(threads=1, device="cpu")


def measure(options: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [*of_runs(Path(folder)), *of_the_index(Path(folder))]


def new_sweep(folder: Path, name: str, plan: dict[str, Any], most: int = 1000) -> Sweep:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(plan))
    return begin_sweep(read_plan(path, most_runs=most), folder / name)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def of_runs(folder: Path) -> list[Row]:
    sweeps = {name: new_sweep(folder, name, DIGITS) for name in ("one", "two", "cluster")}
    runs = sweeps["one"].runs
    bare = timed(lambda: [alone(folder / f"bare {at}", run) for at, run in enumerate(runs)])
    one = timed(lambda: run_sweep(sweeps["one"], workers=1, settings=ONE_THREAD))
    two = timed(lambda: run_sweep(sweeps["two"], workers=2, settings=ONE_THREAD))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        spread = timed(lambda: run_sweep(sweeps["cluster"], cluster=address, settings=ONE_THREAD))
    assert all(sweep.states() == {"finished": len(runs)} for sweep in sweeps.values())
    note = f"{len(runs)} reports few_digits of {bare / len(runs):.1f} s, one thread each"
    return [
        Row("a sweep / the same commands one after another", one / bare, "times", at_most=1.1, note=note),
        Row("what scheduling costs a run", (one - bare) / len(runs), "s", note=note),
        Row("one worker / two workers", one / two, "times", at_least=1.4, note=note),
        Row("one worker / two workers of a Dask cluster", one / spread, "times", at_least=1.4, note=note),
    ]


def alone(place: Path, run: Any) -> None:
    "The bare command."
    words = [
        sys.executable,
        "-m",
        "tljupyter",
        *report_words(run.template, run.parameters),
        "--out",
        str(place),
    ]
    variables = {"TLJUPYTER_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, **variables})


def of_the_index(folder: Path) -> list[Row]:
    grid = {"seed": list(range(MANY // 100)), "draws": list(range(1, 101))}
    begun = time.perf_counter()
    sweep = new_sweep(folder, "many", {"template": str(TINY), "grid": grid}, MANY)
    planned = time.perf_counter() - begun
    for run in sweep.runs:
        place = sweep.place(run)
        place.mkdir()
        write_status(place, Status("finished", progress=1.0, started="2026-01-01T00:00:00.000Z"))
    tracemalloc.start()
    begun = time.perf_counter()
    again = Sweep(sweep.folder)
    states = again.states()
    listed, (_, peak) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert states == {"finished": MANY}
    nothing = timed(lambda: run_sweep(again, workers=1, settings=ONE_THREAD))
    note = f"{MANY:,} runs that have finished"
    return [
        Row("planning", planned, "s", note=f"{MANY:,} runs, checked and written down"),
        Row("the states of all", listed, "s", at_most=10.0, note=note),
        Row("the states of all: memory", peak / 2**20, "MiB", at_most=200.0, note=note),
        Row("going on where nothing is left to do", nothing, "s", at_most=20.0, note=note),
    ]
