"""Each strategy of the queue against random choice: the same start, the same number of labels, the same test cases."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.labels_needed.sets import SEED, Cached, Known
from tljupyter.domains.draws import few_shot_draw, split_groups
from tljupyter.evidence.labels.queue import STRATEGIES, label_queue
from tljupyter.measures.intervals import HeldOut, ResampledScores, interval_of_gain, resampled_scores
from tljupyter.measures.metrics import find_metric
from tljupyter.measures.verdicts import verdict
from tljupyter.transfer.heads import choose_head

STARTS = (2, 10)  # labels a class before the queue
ROUNDS, BATCH = 2, 10  # cases labelled between two looks
DRAWS = 10
METRIC = "balanced_accuracy"
MOST = 1000  # cases in the pool, and to test on
RANDOM = "random"
QUEUED = tuple(name for name in STRATEGIES if name != RANDOM)


def rows(name: str, known: Known, cached: Cached) -> Iterator[dict[str, Any]]:
    "The gain of every strategy over random choice, for few and for more labels at the start."
    pool, test = halves(cached)
    groups = np.arange(len(cached.labels)) if cached.groups is None else cached.groups
    held_out = HeldOut(cached.labels[test], groups[test])
    weights = held_out.weights(4000)  # so that a p-value can be small enough for a table
    two = len(np.unique(cached.labels)) == 2
    for start in STARTS:
        scores = {
            strategy: scored(cached, pool, test, held_out, weights, strategy, start)
            for strategy in (RANDOM, *QUEUED)
            if not (two and strategy == "uncertainty")  # the same queue as margin
        }
        at_random = scores.pop(RANDOM)
        for strategy, found in scores.items():
            gain = interval_of_gain(found, at_random)
            print(name, start, strategy, round(100 * gain.estimate, 1), file=sys.stderr, flush=True)
            yield {
                "set": name,
                "title": known.title,
                "classes": int(cached.labels.max()) + 1,
                "pool": len(pool),
                "test": len(test),
                "start": start,
                "labelled": start * (int(cached.labels.max()) + 1) + ROUNDS * BATCH,
                "strategy": strategy,
                "random": round(float(at_random.values.mean()), 4),
                "gain": round(gain.estimate, 4),
                "low": round(gain.low, 4),
                "high": round(gain.high, 4),
                "p_value": round(gain.p_value, 5),
                "verdict": verdict(gain.low, gain.high),
            }


def halves(cached: Cached) -> tuple[np.ndarray, np.ndarray]:
    "Cases that could be labelled and cases to test on; patients are on one side."
    sides = split_groups(cached.labels, cached.groups, {"pool": 0.5, "test": 0.5}, SEED)
    rng = np.random.default_rng(SEED)
    pool, test = (rng.permutation(np.flatnonzero(sides == side))[:MOST] for side in ("pool", "test"))
    return np.sort(pool), np.sort(test)


def scored(
    cached: Cached,
    pool: np.ndarray,
    test: np.ndarray,
    held_out: HeldOut,
    weights: np.ndarray,
    strategy: str,
    start: int,
) -> ResampledScores:
    "A strategy in every draw of the first labels."
    classes = int(cached.labels.max()) + 1
    given = []
    for draw in range(DRAWS):
        labelled = few_shot_draw(cached.labels, start, draw, cached.groups, pool).train
        for turn in range(ROUNDS):
            left = np.setdiff1d(pool, labelled)
            queue = label_queue(
                cached.features[labelled],
                cached.labels[labelled],
                cached.features[left],
                strategy=strategy,
                count=BATCH,
                groups=None if cached.groups is None else cached.groups[left],
                seed=100 * draw + turn,
            )
            labelled = np.concatenate([labelled, left[queue.cases]])
        head = choose_head(cached.features[labelled], cached.labels[labelled], classes, seed=draw).head
        given.append(head.predict_proba(cached.features[test]))
    table = np.stack(given)
    return resampled_scores(find_metric(METRIC), held_out, table.argmax(2), table, weights)
