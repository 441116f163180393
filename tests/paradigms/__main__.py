"""The command: `python -m tests.paradigms [TASK]... [--full] [--data-dir DIR] [--out DIR] [--json FILE]`."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from tests.paradigms import Given, Task
from tests.paradigms.tasks import GRID, TASKS
from tljupyter.domains.domain import ArrayItems
from tljupyter.domains.draws import few_shot_draw
from tljupyter.evidence.arms import TARGET_ONLY, Arm, Headline
from tljupyter.evidence.comparison import Comparison, Preset, compare
from tljupyter.evidence.methods import PLAIN, method_arms
from tljupyter.evidence.results import headline_of, results_from_predictions
from tljupyter.features.representations import Rows
from tljupyter.measures.verdicts import holm
from tljupyter.refusals import MissingWeights, Refusal
from tljupyter.runs.parts import Parts
from tljupyter.settings import load_settings
from tljupyter.transfer.methods import METHODS

DRAWS, DRAWS_OF_ALL = 5, 20
METRIC = "balanced_accuracy"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.paradigms", description=__doc__)
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; the core ones when none"
    )
    parser.add_argument("--full", action="store_true", help=f"every task, with {DRAWS_OF_ALL} draws")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data sets (default: the setting data_dir)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/paradigms"), help="where finished parts are kept"
    )
    parser.add_argument(
        "--json", type=Path, help="write the table to this file, too; rows of other tasks in it stay"
    )
    asked = parser.parse_args()
    if unknown := set(asked.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}; choose from {', '.join(TASKS)}")
    chosen = asked.tasks or [name for name, task in TASKS.items() if task.core or asked.full]
    data, draws = asked.data_dir or load_settings().data_dir, DRAWS_OF_ALL if asked.full else DRAWS
    started, rows = time.perf_counter(), []
    for name in chosen:
        if not (data / TASKS[name].data).exists():
            print(f"{name}: {data / TASKS[name].data} is not on this machine, left out", file=sys.stderr)
            continue
        try:
            rows += run(TASKS[name], data, asked.out / f"{name}-{draws}", draws)
        except MissingWeights as missing:
            print(f"{name}: {missing} Left out.", file=sys.stderr)
    report = facts(time.perf_counter() - started, draws) | {"rows": corrected(rows)}
    show(report["rows"])
    if asked.json:
        if asked.json.exists():
            report = beside(report, json.loads(asked.json.read_text(encoding="utf-8")))
        asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def beside(report: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    "An earlier report in which the tasks of this one are replaced or added; where it is of another kind, this one."
    same = all(earlier.get(key) == report[key] for key in ("draws", "metric", "libraries"))
    ran = list(dict.fromkeys(row["task"] for row in report["rows"]))
    kept = [row for row in earlier["rows"] if row["task"] not in ran]
    if not same or not kept:
        return report
    new = [task for task in ran if task not in {row["task"] for row in earlier["rows"]}]
    rows = sorted(kept + report["rows"], key=lambda row: list(TASKS).index(row["task"]))
    later = earlier.get("later", {}) | dict.fromkeys(ran, report["date"][:10])
    return earlier | {
        "command": shlex.join([*shlex.split(earlier["command"]), *new]),
        "later": later,
        "rows": rows,
    }


def run(task: Task, data: Path, kept: Path, draws: int) -> list[dict[str, Any]]:
    "All methods on one task; what lies in `kept` is not trained again."
    kept.mkdir(parents=True, exist_ok=True)
    given = in_rows(task.read(data / task.data))
    arms = (*method_arms([*GRID, *task.methods], given.representation, given.parameters), *given.others)
    preset = Preset(task.name, (task.labels_per_class,), draws, draws, tuning_draws=0, trials=1)
    headline = Headline(labels_per_class=task.labels_per_class, arm=arms[-1].name, baseline=TARGET_ONLY)
    target = given.target
    pool = target.take(target.where("train"))
    usable, refused = working(arms, given, pool, task)
    headline = replace(headline, arm=usable[-1].name)
    found = compare(
        target,
        usable,
        preset,
        headline,
        source=given.source,
        unlabelled=pool,
        sink=Parts(kept),
        progress=lambda done, total, what: print(f"{task.name} {done}/{total} {what}", file=sys.stderr),
    )
    rows = table(task, found.results(), refused, {arm.name: paradigm(arm) for arm in arms})
    told_nothing = {name for names in given.controls.values() for name in names}
    for row in rows:
        row["control"] = row["method"] in told_nothing
        over = given.controls.get(row["method"], ())
        if over and not row["refused"]:
            row["over_controls"] = [gain_over(found, row["method"], control, headline) for control in over]
    return rows


def gain_over(found: Comparison, method: str, control: str, headline: Headline) -> dict[str, Any]:
    "What a method gains over itself with knowledge that says nothing."
    asked = replace(headline, arm=method, baseline=control)
    row = headline_of(results_from_predictions(found.predictions, found.classes, asked))
    assert row is not None
    return {"control": control} | {key: row[key] for key in ("gain", "low", "high", "verdict")}


def in_rows(given: Given) -> Given:
    "The same with rows of numbers for items, learned once from the source and the pool of labels, not from test items."
    pool = given.target.take(given.target.where("train"))
    parts = [part for part in (given.source, pool) if part is not None]
    fitted = clone(given.representation).fit(*parts)
    source, target = (
        None
        if part is None
        else replace(part, items=ArrayItems(np.asarray(fitted.transform(part), dtype=float)))
        for part in (given.source, given.target)
    )
    return replace(given, source=source, target=target, representation=Rows())


def working(arms: Sequence[Arm], given: Given, pool: Any, task: Task) -> tuple[list[Arm], dict[str, str]]:
    "The arms that can do this task, and why the others cannot: tried on one draw."
    target, usable, refused = given.target, [], {}
    drawn = few_shot_draw(target.labels, task.labels_per_class, 10**6, target.groups, target.where("train"))
    hidden = replace(pool, labels=np.full(len(pool), -1))
    for arm in arms:
        try:
            arm.make({}, 0).fit(target.take(drawn.train), given.source, hidden)
        except Refusal as refusal:
            refused[arm.name] = str(refusal)
        else:
            usable.append(arm)
    return usable, refused


def table(
    task: Task, result: Mapping[str, Any], refused: Mapping[str, str], paradigms: Mapping[str, str]
) -> list[dict[str, Any]]:
    "One row a method: its score, and its gain over target only."
    means = {row["arm"]: row for row in result["arms"] if row["metric"] == METRIC}
    gains = {
        row["arm"]: row
        for row in result["comparisons"]
        if row["metric"] == METRIC and row["baseline"] == TARGET_ONLY
    }
    rows = []
    for name in means:
        row = {"task": task.name, "title": task.title, "method": name, "paradigm": paradigms[name]}
        row |= {"labels_per_class": task.labels_per_class, "score": means[name]["mean"]}
        gain = gains.get(name)
        for key in ("gain", "low", "high", "verdict", "draws", "p_value"):
            row[key] = None if gain is None else gain[key]
        rows.append(row | {"refused": ""})
    empty = dict.fromkeys(("score", "gain", "low", "high", "verdict", "draws", "p_value"))
    about = {"task": task.name, "title": task.title, "labels_per_class": task.labels_per_class}
    rows += [
        about | {"method": name, "paradigm": paradigms[name]} | empty | {"refused": reason}
        for name, reason in refused.items()
    ]
    return rows


def paradigm(arm: Arm) -> str:
    "Of a listed method, or as the note of an arm says which is one under another name."
    return METHODS[arm.name].paradigm if arm.name in METHODS else arm.note.partition("-based")[0]


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    "Holm's correction over the methods of a task, which are read together; plain arms and controls claim nothing."
    for name in {row["task"] for row in rows}:
        claims = [
            row
            for row in rows
            if row["task"] == name
            and row["method"] not in PLAIN
            and not row["control"]
            and row["p_value"] is not None
        ]
        given = np.array([row["p_value"] for row in claims], dtype=float)
        for row, value in zip(claims, holm(given), strict=True):
            row["p_holm"] = None if np.isnan(value) else float(value)
    return rows


def facts(seconds: float, draws: int) -> dict[str, Any]:
    "When, where and with what it was measured."
    return {
        "command": shlex.join(["python", "-m", "tests.paradigms", *_public(sys.argv[1:])]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(seconds),
        "draws": draws,
        "metric": METRIC,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in ("scikit-learn", "skada", "pot", "numpy", "torch")},
    }


def _public(arguments: Sequence[str]) -> list[str]:
    "Arguments without folders of this machine."
    return [word for word in arguments if word in TASKS or word == "--full"]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    "The table for people."
    shown = Table("task", "method", "paradigm", "score", "gain over target only", "verdict")
    for row in rows:
        gain = ""
        if row["gain"] is not None:
            gain = f"{100 * row['gain']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        score = "" if row["score"] is None else f"{row['score']:.3f}"
        word = row["verdict"] or (f"refused: {row['refused']}" if row["refused"] else "")
        shown.add_row(row["task"], row["method"], row["paradigm"], score, gain, word)
    Console(width=160).print(shown)


if __name__ == "__main__":
    with threadpool_limits(1):  # the matrices are small; threads would only wait for one another
        sys.exit(main())
