"""Every paradigm on real tasks, with the same draws, arms and verdicts.

`python -m tests.paradigms` runs the core grid, one direction of transfer a task; `--full` adds the others. What is
finished is kept, so that a second call goes on where the first one stopped. A task is an entry of `tasks.TASKS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tljupyter.domains.domain import Domain
from tljupyter.evidence.arms import Arm
from tljupyter.features.representations import Representation


@dataclass(frozen=True, eq=False)
class Given:
    "What a task is made of, read from its data."

    source: Domain | None
    target: Domain  # with "train" (the pool of labels) and "test" items
    representation: Representation
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method
    others: tuple[Arm, ...] = ()  # arms of this task alone: methods in a form of its own, and their controls
    controls: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # method -> arms it has to beat: itself, told nothing


@dataclass(frozen=True)
class Task:
    "One transfer from a source domain to a target domain with few labels."

    name: str  # as in a file name
    title: str  # for people: source to target
    data: str  # folder of the data set
    read: Callable[[Path], Given]
    labels_per_class: int = 5
    core: bool = True  # part of the short grid
    methods: tuple[str, ...] = ()  # beside those that every task gets
