"""The command: `python -m tests.bench [NAME]... [--json]`."""

import argparse
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from tests.bench import BENCHMARKS, Options, Row

LIBRARIES = ("torch", "torchvision", "onnxruntime", "fastai", "numpy", "pillow")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all when none is given"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=int, default=field.default, help=f"default {field.default}")
    given = vars(parser.parse_args())
    names, as_json = given.pop("names") or list(BENCHMARKS), given.pop("json")
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    options = Options(**given)
    start = time.perf_counter()
    results = {name: (run if len(names) == 1 else run_apart)(name, options) for name in names}
    report = facts(options, time.perf_counter() - start) | {
        "benchmarks": {name: [row.to_dict() for row in rows] for name, rows in results.items()}
    }
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show(results)
    return 0 if all(row.met is not False for rows in results.values() for row in rows) else 1


def run(name: str, options: Options) -> list[Row]:
    "One benchmark; what it is doing goes to the error stream, so that --json stays one object."
    import torch

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    print(f"{name} …", file=sys.stderr, flush=True)
    return importlib.import_module(f"tests.bench.{name}").measure(options)


def run_apart(name: str, options: Options) -> list[Row]:
    "One benchmark of several, in a process of its own: what others loaded and left behind would be measured, too."
    flags = [f"--{field.name.replace('_', '-')}={getattr(options, field.name)}" for field in fields(options)]
    command = [sys.executable, "-m", "tests.bench", name, "--json", *flags]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)["benchmarks"][name]
    return [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in told]


def facts(options: Options, seconds: float) -> dict[str, object]:
    "When, where and with what it was measured."
    return {
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "tljupyter": importlib.import_module("tljupyter").__version__,
        "libraries": {name: installed(name) for name in LIBRARIES},
        "options": {field.name: getattr(options, field.name) for field in fields(options)},
    }


def installed(library: str) -> str | None:
    try:
        return version(library)
    except ImportError:
        return None


def show(results: dict[str, list[Row]]) -> None:
    "The table for people."
    for name, rows in results.items():
        table = Table(
            "what", "measured", "target", "met", "note", title=name, title_justify="left", expand=True
        )
        for row in rows:
            met = {None: "", True: "yes", False: "[bold]NO[/bold]"}[row.met]
            table.add_row(row.what, f"{row.value:.3g} {row.unit}", row.target, met, row.note)
        Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
