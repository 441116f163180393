"""How the five strategies of the policy do on two real tasks, by labels: `python -m tests.policy_grid [--minutes M]`.

Writes `nbs/api/evidence/policy.json`, which that page reads. It goes on where it stopped; delete the file to begin anew.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tljupyter import __version__
from tljupyter.backbones.registry import Backbone
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.domain import Domain
from tljupyter.domains.draws import few_shot_draw, split_groups
from tljupyter.domains.readers import read_arrays, read_folder
from tljupyter.evidence.policy import STRATEGIES, Choice, choose_strategy, situation_of
from tljupyter.measures.metrics import balanced_accuracy
from tljupyter.settings import load_settings
from tljupyter.training import TrainingSpec
from tljupyter.transfer.finetuning import pretrain

PAGE = Path(__file__).resolve().parent.parent / "nbs/api/evidence/policy.json"
BUDGETS, DRAWS, FILMS = (2, 5, 10, 20, 50), 3, 400
TRAINING = TrainingSpec(epochs=20, batch_size=16, learning_rate=3e-4)


@cache
def digits() -> tuple[Domain, np.ndarray, Backbone]:
    "Digits 5 to 9 for a small network that knows 0 to 4."
    from sklearn.datasets import load_digits

    found = load_digits()
    images, names = (found.images / 16).astype(np.float32), found.target.astype(str)
    low = found.target < 5
    source = read_arrays(images[low], list(names[low]), name="digits 0 to 4")
    target = read_arrays(images[~low], list(names[~low]), name="digits 5 to 9")
    untrained = load_backbone("digits_convnet", weights="random", seed=0)
    known, _ = pretrain(source, untrained, TrainingSpec(epochs=6, batch_size=64, learning_rate=3e-3))
    return target, np.arange(len(target)), known.backbone


@cache
def films() -> tuple[Domain, np.ndarray, Backbone]:
    "Children's chest X-rays for a SqueezeNet that knows ImageNet, at 64 pixels; no patient on both sides."
    folder = Path(load_settings().data_dir)
    domain = read_folder(folder / "lung_kermany_pediatric")
    rng = np.random.default_rng(0)
    each = [rng.permutation(np.flatnonzero(domain.labels == code))[: FILMS // 2] for code in (0, 1)]
    domain = domain.take(np.sort(np.concatenate(each)))
    sides = split_groups(domain.labels, domain.groups, {"train": 0.6, "test": 0.4}, 0, domain.classes)
    weights = folder / "weights_small_pretrained/squeezenet1_0_imagenet.safetensors"
    backbone = load_backbone("squeezenet1_0", weights=weights, input_size=64)
    return domain, np.flatnonzero(sides == "train"), backbone


TASKS = {"digits": digits, "films": films}


def one(task: str, labels_per_class: int, draw: int, strategy: str) -> dict[str, object]:
    "One strategy on one draw: balanced accuracy on all that was not drawn, or on the other side."
    domain, pool, backbone = TASKS[task]()
    drawn = few_shot_draw(domain.labels, labels_per_class, draw, domain.groups, pool).train
    rest = np.setdiff1d(np.arange(len(domain)), drawn if len(pool) == len(domain) else pool)
    few = domain.take(drawn)
    parameters = {"spec": TRAINING} if STRATEGIES[strategy].trains_network else {}
    model = as_choice(strategy, few, backbone).make(backbone, draw).set_params(**parameters)
    said = model.fit(few).predict_proba(domain.take(rest))
    score = float(balanced_accuracy(domain.labels[rest], said.argmax(1)))
    return {
        "task": task,
        "labels_per_class": labels_per_class,
        "draw": draw,
        "strategy": strategy,
        "balanced_accuracy": round(score, 4),
    }


def as_choice(strategy: str, few: Domain, backbone: Backbone) -> Choice:
    "A choice of any strategy, whatever the policy would say."
    listed = STRATEGIES[strategy]
    chosen = choose_strategy(situation_of(few, backbone))
    return replace(chosen, strategy=strategy, method=listed.method, parameters=listed.parameters)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.policy_grid", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time; 60 when not given")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch; all cores")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = json.loads(PAGE.read_text(encoding="utf-8"))["rows"] if PAGE.exists() else []
    done = {(r["task"], r["labels_per_class"], r["draw"], r["strategy"]) for r in rows}
    start = time.perf_counter()
    for task in TASKS:
        for labels_per_class in BUDGETS:
            for draw in range(DRAWS):
                for strategy in STRATEGIES:
                    late = time.perf_counter() - start > 60 * given.minutes
                    if late or (task, labels_per_class, draw, strategy) in done:
                        continue
                    rows.append(one(task, labels_per_class, draw, strategy))
                    print(rows[-1], flush=True)
                    PAGE.write_text(json.dumps(page(rows), indent=1) + "\n", encoding="utf-8")


def page(rows: list[dict[str, object]]) -> dict[str, object]:
    "What the page reads."
    parameters = {task: make()[2].parameters for task, make in TASKS.items() if made(task, rows)}
    return {
        "command": "python -m tests.policy_grid",
        "date": datetime.now(UTC).date().isoformat(),
        "tljupyter": __version__,
        "parameters": parameters,
        "rows": rows,
    }


def made(task: str, rows: list[dict[str, object]]) -> bool:
    return any(row["task"] == task for row in rows)


if __name__ == "__main__":
    main()
