"""Evidence on cached features: twenty draws of three arms, with intervals and verdicts, on 2,000 rows of 512 numbers."""

import time
from collections.abc import Sequence

import numpy as np

from tests.bench import Options, Row
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.evidence.arms import MAJORITY, TARGET_ONLY, Arm, Headline
from tljupyter.evidence.comparison import Preset, compare
from tljupyter.evidence.methods import method_arm
from tljupyter.features.representations import Rows
from tljupyter.transfer.heads import choose_head

ROWS, WIDTH, DRAWS, BUDGETS = 2_000, 512, 20, (5, 20)


class FirstHalf(Rows):
    "The first half of the columns, as of an earlier stage."

    def transform(self, domain: Domain) -> np.ndarray:
        return super().transform(domain)[:, : WIDTH // 2]


def measure(options: Options) -> list[Row]:
    rng, labels = np.random.default_rng(0), np.arange(ROWS) % 2
    rows = rng.normal(size=(ROWS, WIDTH))
    rows[:, :20] += 0.3 * (2 * labels[:, None] - 1)
    sides, names = np.where(np.arange(ROWS) < ROWS // 2, "train", "test"), np.arange(ROWS).astype(str)
    domain = Domain("bench", ArrayItems(rows), labels, ("no", "yes"), None, sides, names, "table")
    arms = (
        method_arm(MAJORITY),
        method_arm(TARGET_ONLY),
        method_arm(TARGET_ONLY, FirstHalf(), called="half of the columns"),
    )
    size = f"{ROWS:,} x {WIDTH} cached features, {', '.join(map(str, BUDGETS))} labels a class, {DRAWS} draws"
    seconds, bare = timed(domain, arms), heads(rows, labels)
    return [
        Row("three arms with verdicts", seconds, "s", at_most=20.0, note=size),
        Row("three arms with verdicts / the bare heads of two", seconds / bare, "", note=size),
    ]


def timed(domain: Domain, arms: Sequence[Arm]) -> float:
    "Seconds of the comparison and its results."
    preset = Preset("bench", BUDGETS, DRAWS, DRAWS, tuning_draws=0, trials=1)
    headline = Headline(labels_per_class=BUDGETS[0], arm=arms[-1].name, baseline=TARGET_ONLY)
    start = time.perf_counter()
    compare(domain, arms, preset, headline).results()
    return time.perf_counter() - start


def heads(rows: np.ndarray, labels: np.ndarray) -> float:
    "Seconds of the same heads without draws, predictions kept, intervals or verdicts."
    start = time.perf_counter()
    for budget in BUDGETS:
        for draw in range(DRAWS):
            few = np.random.default_rng(draw).permutation(ROWS // 4)[:budget]
            few = np.concatenate([2 * few, 2 * few + 1])
            for width in (WIDTH, WIDTH // 2):
                head = choose_head(rows[few, :width], labels[few], 2).head
                head.predict_proba(rows[ROWS // 2 :, :width])
    return time.perf_counter() - start
