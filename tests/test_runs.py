"""Run folders under faults: killed writers, full disks, two at once, folders of others."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tljupyter.refusals import Refusal
from tljupyter.runs.files import RESERVE, append_line, plain, read_lines, replace_file
from tljupyter.runs.folder import RunFolder
from tljupyter.runs.parts import Parts
from tljupyter.runs.shelf import all_runs, begin, keep_newest, new_place
from tljupyter.runs.status import Status, own_status, read_status, told_status, write_status
from tljupyter.settings import Settings


def predictions(draw: int, arm: str = "linear probe", labels_per_class: int = 5) -> pd.DataFrame:
    rows = {"labels_per_class": labels_per_class, "draw": draw, "arm": arm, "case": ["b.png", "a.png"]}
    return pd.DataFrame({**rows, "predicted": [1, 0]})


def in_another_process(code: str, *arguments: object) -> subprocess.Popen:
    "Runs `code`; its first printed line has come when this returns."
    command = [sys.executable, "-u", "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


HOLD = """
import sys, time
from tljupyter.runs.folder import RunFolder
with RunFolder.create(sys.argv[1], "tiny") as run:
    run.progress(1, 2, "half way")
    print("ready")
    time.sleep(60)
"""


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 64 kB."
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    "Use up all room below `place`."
    with pytest.raises(OSError), (place / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


# Status


def test_a_killed_run_reads_as_failed_and_can_be_resumed(tmp_path):
    process = in_another_process(HOLD, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").status.state == "running"
    process.kill()
    process.wait()
    status = RunFolder.open(tmp_path / "run").status
    assert (status.state, status.error, status.progress) == ("failed", "the process died", 0.5)
    with RunFolder.create(tmp_path / "run", "tiny", resume=True):
        assert told_status(tmp_path / "run").pid == os.getpid()


def test_a_killed_child_that_nobody_has_waited_for_is_dead(tmp_path):
    process = in_another_process(HOLD, tmp_path / "run")
    process.kill()
    deadline = time.monotonic() + 10
    while read_status(tmp_path / "run").state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read_status(tmp_path / "run").state == "failed"  # it is a zombie until the next line
    process.wait()


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"pid": 2**22 + 1}, "failed"),  # above the largest process number
        (
            {"started": "2001-01-01T00:00:00.000Z"},
            "failed",
        ),  # this process is younger: the number was used again
        (
            {"pid": 2**22 + 1, "host": socket.gethostname() + "-2"},
            "running",
        ),  # of another machine nothing is known
        ({"pid": 2**22 + 1, "state": "finished"}, "finished"),
        ({"pid": 2**22 + 1, "state": "queued"}, "failed"),
    ],
)
def test_whose_word_is_taken(tmp_path, changes, state):
    write_status(tmp_path, replace(own_status("running"), **changes))
    assert read_status(tmp_path).state == state


def test_status_that_is_none_is_refused(tmp_path):
    assert read_status(tmp_path) == Status()
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(Refusal, match=r"status\.json"):
        read_status(tmp_path)
    with pytest.raises(Refusal, match="finished"):
        Status("done")  # type: ignore[arg-type]


def test_a_reader_never_meets_half_a_file(tmp_path):
    write_status(tmp_path, own_status("running"))
    with ThreadPoolExecutor(4) as pool:
        writers = [
            pool.submit(
                lambda i=i: [
                    write_status(tmp_path, replace(own_status("running"), message="x" * i)) for _ in range(50)
                ]
            )
            for i in (1, 5000)
        ]
        while not all(writer.done() for writer in writers):
            json.loads((tmp_path / "status.json").read_bytes())
        for writer in writers:
            writer.result()
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


# Files


def test_json_has_no_nan():
    value = {
        "a": float("nan"),
        "b": [np.float64("inf"), 1.5],
        "c": np.arange(2),
        "d": (True, None),
        3: {"e": Path("x")},
    }
    assert plain(value) == {"a": None, "b": [None, 1.5], "c": [0, 1], "d": [True, None], "3": {"e": "x"}}


@pytest.mark.parametrize("torn", [b"", b'{"epoch": 9', b"\xff\xfe", b"\n"])
def test_lines_survive_a_torn_one(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"epoch": 0})
    path.write_bytes(path.read_bytes() + torn)
    append_line(path, {"epoch": 1})
    assert read_lines(path) == [{"epoch": 0}, {"epoch": 1}]


# Folders


def test_a_living_run_is_not_disturbed(tmp_path):
    process = in_another_process(HOLD, tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(Refusal, match=f"in use by another run.*{process.pid}"):
            RunFolder.create(tmp_path / "run", "tiny", resume=resume)
    assert RunFolder.open(tmp_path / "run").status.state == "running"
    process.kill()
    process.wait()


def test_of_many_at_once_one_gets_the_folder(tmp_path):
    def attempt(_: int) -> RunFolder | None:
        try:
            return RunFolder.create(tmp_path / "run", "tiny")
        except Refusal:
            return None

    with ThreadPoolExecutor(8) as pool:
        held = [run for run in pool.map(attempt, range(32)) if run]
    assert len(held) == 1
    held[0].release()


def test_other_peoples_folders_are_left_as_they_were(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(Refusal, match=r"thesis\.tex"):
        RunFolder.create(tmp_path, "tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(Refusal, match=r"no params\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("params", ["{", "[]", '{"name": "an npm package"}', '{"schema": 99}'])
def test_folders_of_something_else_and_of_another_kit_are_refused(tmp_path, params):
    (tmp_path / "params.json").write_text(params)
    for take in (RunFolder.open, lambda path: RunFolder.create(path, "tiny")):
        with pytest.raises(Refusal, match="schema 99" if "99" in params else "something else"):
            take(tmp_path)
    assert (tmp_path / "params.json").read_text() == params


@pytest.mark.parametrize("place", ["a file/run", "a file", "x" * 300, "/proc/run"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, place):
    (tmp_path / "a file").write_text("")
    with pytest.raises(Refusal, match="cannot write here"):
        RunFolder.create(tmp_path / place, "tiny")


def test_what_a_block_ends_with_is_what_is_told(tmp_path):
    for error, state in (
        (None, "finished"),
        (KeyboardInterrupt(), "stopped"),
        (ZeroDivisionError("no"), "failed"),
    ):
        path = tmp_path / state
        try:
            with RunFolder.create(path, "tiny") as run:
                run.put("a key", predictions(0))
                if error:
                    raise error
        except (KeyboardInterrupt, ZeroDivisionError) as raised:
            assert raised is error
        status = RunFolder.open(path).status
        assert status.state == state and ("ZeroDivisionError: no" in status.error) == (state == "failed")
        assert len(RunFolder.open(path).predictions()) == 2  # nothing is lost, however it ends
        assert (path / "parts").exists() == (state != "finished") and not (path / RESERVE).exists()


def test_results_are_never_written_over(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder.create(tmp_path / "run", "tiny", {"seed": 0}) as run:
        run.put((5, 0), predictions(0))
        raise ZeroDivisionError
    with pytest.raises(Refusal, match="--resume"):
        RunFolder.create(tmp_path / "run", "tiny", {"seed": 0})
    with pytest.raises(Refusal, match="seed was 0, now 1"):
        RunFolder.create(tmp_path / "run", "tiny", {"seed": 1}, resume=True)
    with pytest.raises(Refusal, match="template was 'tiny', now 'large'"):
        RunFolder.create(tmp_path / "run", "large", {"seed": 0}, resume=True)
    with RunFolder.create(tmp_path / "run", "tiny", {"seed": 0}, resume=True) as run:
        assert run.has((5, 0)) and not run.has((5, 1))
    for resume in (False, True):
        with pytest.raises(Refusal, match="finished run"):
            RunFolder.create(tmp_path / "run", "tiny", {"seed": 0}, resume)


def test_a_failed_run_with_nothing_to_lose_makes_way(tmp_path):
    with pytest.raises(Refusal), RunFolder.create(tmp_path / "run", "tiny", {"data": "wrong"}):
        raise Refusal("no such data")
    with RunFolder.create(tmp_path / "run", "tiny", {"data": "right"}) as run:
        assert run.parameters == {"data": "right"}


def test_who_helps_does_not_end_the_run(tmp_path):
    with RunFolder.create(tmp_path / "run", "tiny") as run:
        helper = RunFolder.open(run.path)
        helper.put((5, 0), predictions(0))
        helper.progress(1, 4, "draw 1 of 4")
        helper.end()
        assert run.status.state == "running" and run.status.pid == os.getpid() and run.status.progress == 0.25
        assert run.has((5, 0)) and (run.path / "predictions.parquet").exists()


# Parts


def test_keys_are_kept_apart(tmp_path):
    parts = Parts(tmp_path / "parts")
    keys = [
        "a",
        ("a", "b"),
        "a_b",
        ("a b",),
        ("a-b",),
        (5, 1),
        (51,),
        ("x" * 300, 1),
        ("x" * 300, 2),
        ("肺炎", "../.."),
    ]
    assert not any(parts.has(key) for key in keys)
    for i, key in enumerate(keys):
        parts.put(key, predictions(i))
    assert [parts.get(key)["draw"].tolist() for key in keys] == [[i, i] for i in range(len(keys))]
    assert parts.has(["a", "b"]) and {file.parent for file in parts.folder.iterdir()} == {parts.folder}


def test_a_broken_part_is_computed_again(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.put("key", predictions(0))
    parts.path("key").write_bytes(parts.path("key").read_bytes()[:100])
    assert not parts.has("key")


def test_merging_orders_draws_and_leaves_other_tables(tmp_path):
    run = RunFolder.create(tmp_path / "run", "tiny")
    for labels_per_class, draw in ((10, 1), (5, 10), (5, 2)):
        run.put((labels_per_class, draw), predictions(draw, labels_per_class=labels_per_class))
    run.put("tuning", pd.DataFrame({"trial": [1], "loss": [0.5]}))
    run.end()
    table = RunFolder.open(run.path).predictions()
    assert list(zip(table["labels_per_class"], table["draw"], strict=True))[::2] == [(5, 2), (5, 10), (10, 1)]
    assert table["case"].tolist() == ["b.png", "a.png"] * 3
    assert run.get("tuning")["loss"].tolist() == [0.5]


# A full disk


def test_a_full_disk_is_told(small_disk):
    run = RunFolder.create(small_disk / "run", "tiny")
    with pytest.raises(OSError), run:
        run.put("before", predictions(0))
        fill(small_disk)
        run.put("after", pd.DataFrame({"noise": np.random.default_rng(0).random(4000)}))
    told = RunFolder.open(run.path)
    assert told.status.state == "failed" and "No space left" in told.status.error
    assert told.has("before") and not told.has("after")


def test_a_disk_that_is_full_from_the_start_is_refused(small_disk):
    fill(small_disk)
    with pytest.raises(Refusal, match="No space left"):
        RunFolder.create(small_disk / "run", "tiny")


def test_a_full_disk_keeps_the_old_file(small_disk):
    (small_disk / "results.json").write_bytes(b"old")
    fill(small_disk)
    with pytest.raises(OSError):
        replace_file(small_disk / "results.json", bytes(8192))
    assert (small_disk / "results.json").read_bytes() == b"old"
    assert {file.name for file in small_disk.iterdir()} == {"results.json", "ballast"}


# The shelf


def test_the_shelf_keeps_what_lives_and_what_is_not_ours(tmp_path):
    assert all_runs(tmp_path / "absent") == [] and keep_newest(tmp_path / "absent", 1) == []
    living = RunFolder.create(new_place(tmp_path, "tiny"), "tiny")
    living.tell("running")
    for _ in range(3):
        time.sleep(0.002)
        RunFolder.create(new_place(tmp_path, "tiny"), "tiny").end()
    (tmp_path / "mine").mkdir()
    assert keep_newest(tmp_path, 0) == []
    assert len(keep_newest(tmp_path, 1)) == 2
    assert len(all_runs(tmp_path)) == 2 and living.path.exists() and (tmp_path / "mine").exists()
    living.release()


def test_a_notebook_opened_by_hand_answers_for_its_run(tmp_path):
    run = begin("", "tiny", {"seed": 1}, Settings(runs_dir=tmp_path))
    assert run.path.parent == tmp_path and run.status.state == "running" and run.parameters == {"seed": 1}
    run.end()
    assert run.status.state == "finished"
