"""How many more labels, asked by people with few, answered by the labels they did not have."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from tests.labels_needed.sets import Cached, Known
from tljupyter.domains.draws import few_shot_draw
from tljupyter.evidence.labels.needed import REACH, LabelsNeeded, LearningCurve, labels_needed, learning_curve

PEOPLE = 6  # for each set and number of labels
ABOVE = (0.02, 0.05, 0.10)  # goals, above what the person measures at most labels
LEVELS = (0.8, 0.9)
SLACK = 0.02  # of the true number: it is measured, too
_DRAWS_OF_TRUTH, _SAMPLES_OF_TRUTH = 6, 9


def rows(name: str, known: Known, cached: Cached) -> Iterator[dict[str, Any]]:
    "Every person's questions with their answers and the truth."
    smallest, most = int(np.bincount(cached.labels).min()), max(known.have)
    top = int(min(REACH * most, 0.75 * smallest))
    budgets = np.unique(np.round(np.geomspace(min(known.have) / 2, top, _SAMPLES_OF_TRUTH)).astype(int))
    truth = learning_curve(
        cached.features,
        cached.labels,
        groups=cached.groups,
        budgets=budgets.tolist(),
        draws=_DRAWS_OF_TRUTH,
        seed=10**6,
        replicates=2,
    )
    for have in known.have:
        for person in range(PEOPLE):
            own = few_shot_draw(cached.labels, have, person, cached.groups).train
            groups = None if cached.groups is None else cached.groups[own]
            curve = learning_curve(cached.features[own], cached.labels[own], groups=groups, seed=person)
            print(name, have, person, [round(mean, 3) for mean in curve.means], file=sys.stderr, flush=True)
            yield from answers(name, known, person, curve, truth)


def answers(
    name: str, known: Known, person: int, curve: LearningCurve, truth: LearningCurve
) -> Iterator[dict[str, Any]]:
    "One person's questions: a bit more, more, much more than was measured."
    for above in ABOVE:
        goal = round(curve.means[-1] + above, 3)
        if goal > 0.995:
            continue
        enough = true_labels(truth, goal)
        for level in LEVELS:
            said = labels_needed(curve, goal, level=level)
            yield {
                "set": name,
                "title": known.title,
                "have": curve.have,
                "person": person,
                "measured": round(curve.means[-1], 4),
                "above": above,
                "goal": goal,
                "level": level,
                "low": said.low,
                "high": said.high,
                "identified": said.identified,
                "reached": said.reached,
                "truth": None if enough is None else round(max(enough - curve.have, 0), 1),
                "beyond": truth.budgets[-1] - curve.have,
                **right(said, enough, truth.budgets[-1]),
            }


def true_labels(truth: LearningCurve, goal: float) -> float | None:
    "Labels a class that reach the goal on a curve made to rise; None where it does not within the labels there are."
    budgets = np.log(truth.budgets)
    means = IsotonicRegression().fit_transform(budgets, truth.means)
    if means[-1] < goal:
        return None
    above = int(np.argmax(means >= goal))
    if above == 0:
        return float(truth.budgets[0])
    return float(np.exp(np.interp(goal, means[above - 1 : above + 1], budgets[above - 1 : above + 1])))


def right(said: LabelsNeeded, enough: float | None, most: int) -> Mapping[str, bool]:
    "Whether the lower end is below the truth, and the upper end, where there is one, above it."
    more = np.inf if enough is None else max(enough - said.have, 0)
    low = said.low <= more * (1 + SLACK)
    if said.high is None:
        high = True
    elif enough is None:  # the truth is beyond the labels there are
        high = said.have + said.high >= most
    else:
        high = said.high >= more * (1 - SLACK)
    return {"low_right": bool(low), "high_right": bool(high)}
