"""What the kit promises about speed and memory, measured side by side on this machine.

`python -m tests.bench [NAME] [--json]`. A benchmark is a module here with a function `measure(options) -> list[Row]`.
"""

from dataclasses import asdict, dataclass

BENCHMARKS = (
    "import_time",
    "engines",
    "frozen_training",
    "second_experiment",
    "evidence",
    "memory",
    "handover",
    "data_view",
    "monitoring",
    "ranking",
    "sweep",
)


@dataclass(frozen=True)
class Options:
    "How large the benchmarks are; the defaults are those of the promises."

    images: int = 240
    epochs: int = 10
    size: int = 224
    batch_size: int = 24  # divides 240: fastai leaves out the rest of an epoch
    threads: int = 0  # of torch; 0: all cores
    workers: int = 2  # processes that decode for the two loops built on a DataLoader
    many: int = 10_000  # images of the memory benchmark


@dataclass(frozen=True)
class Row:
    "One number, with its promise where there is one."

    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g} {self.unit}".strip()
        return "" if self.at_most is None else f"at most {self.at_most:g} {self.unit}".strip()

    @property
    def met(self) -> bool | None:
        "None where nothing was promised."
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {"value": float(f"{self.value:.4g}"), "target": self.target, "met": self.met}
