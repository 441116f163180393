"""The command: `python -m tests.labels_needed [coverage | queue] [SET]... [--data-dir DIR] [--json FILE]`."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from tests.labels_needed import coverage, strategies
from tests.labels_needed.sets import SETS
from tljupyter.settings import load_settings

STUDIES = {"coverage": coverage, "queue": strategies}
WITHOUT = {"coverage": (), "queue": ("digits-35", "dvd")}  # one of a kind is enough there


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.labels_needed", description=__doc__)
    parser.add_argument("study", nargs="?", choices=STUDIES, default="coverage")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all when none")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data sets (default: the setting data_dir)"
    )
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    asked = parser.parse_args()
    if unknown := set(asked.sets) - set(SETS):
        parser.error(f"unknown set {', '.join(sorted(unknown))}; choose from {', '.join(SETS)}")
    data, rows = asked.data_dir or load_settings().data_dir, []
    wall, cpu = time.perf_counter(), time.process_time()
    for name in asked.sets or [name for name in SETS if name not in WITHOUT[asked.study]]:
        if SETS[name].data and not (data / SETS[name].data).exists():
            print(f"{name}: {data / SETS[name].data} is not on this machine, left out", file=sys.stderr)
            continue
        rows += STUDIES[asked.study].rows(name, SETS[name], SETS[name].read(data / SETS[name].data))
    seconds = {
        "seconds": round(time.perf_counter() - wall),
        "processor_seconds": round(time.process_time() - cpu),
    }
    report = facts(asked.study, asked.sets) | seconds | {"rows": rows}
    show(rows)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def facts(study: str, sets: Sequence[str]) -> dict[str, Any]:
    "When, where and with what it was measured."
    return {
        "command": shlex.join(["python", "-m", "tests.labels_needed", study, *sets]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("scikit-learn", "numpy", "torch")},
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    "The table for people."
    if not rows:
        return
    columns = [name for name in rows[0] if name not in ("title", "beyond")]
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    Console(width=180).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):  # the matrices are small; threads would only wait for one another
        sys.exit(main())
