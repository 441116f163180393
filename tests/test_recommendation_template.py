"""The recommender's report on real and on made ratings: its lists against a second computation, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score
from test_templates import made, recomputed, report

from tljupyter.runs.folder import RunFolder

pytestmark = pytest.mark.slow


def ndcg_by_hand(predictions: pd.DataFrame, arm: str, labels_per_class: int, top: int) -> tuple[float, int]:
    "Mean over draws of the mean over users."
    rows = predictions[(predictions["part"] == "test") & (predictions["arm"] == arm)]
    rows = rows[rows["labels_per_class"] == labels_per_class]
    means, users = [], 0
    for _, drawn in rows.groupby("draw"):
        scores = [
            ndcg_score([one["label"]], [one["p_1"]], k=top)
            for _, one in drawn.groupby("group")
            if one["label"].nunique() == 2
        ]
        means.append(np.mean(scores))
        users = len(scores)
    return float(np.mean(means)), users


def check(run: Path) -> dict:
    results, predictions = made(run)
    assert recomputed(results, predictions) == results
    ranking = json.loads((run / "ranking.json").read_text())
    for row in ranking["arms"]:
        if row["metric"] == "ndcg":
            mean, users = ndcg_by_hand(predictions, row["arm"], row["labels_per_class"], ranking["top"])
            assert np.isclose(mean, row["mean"], atol=1e-6) and users == ranking["users"], row["arm"]
    means = {(row["arm"], row["labels_per_class"], row["metric"]): row["mean"] for row in ranking["arms"]}
    for row in ranking["gains"]:
        key = row["labels_per_class"], row["metric"]
        assert np.isclose(row["gain"], means[row["arm"], *key] - means["target only", *key], atol=0.02)
        assert row["low"] <= row["gain"] <= row["high"]
    return ranking


def test_music_by_what_people_said_of_books(tmp_path, data_dir):
    folder = data_dir / "recsys_douban_cross"
    parameters = (f"ratings={folder / 'music.csv.gz'}", f"behaviour={folder / 'book.csv.gz'}", "budgets=5")
    code, out, errors = report("recommendation", tmp_path / "run", *parameters)
    assert code == 0, errors
    check(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").stat().st_size > 50_000
    predictions = RunFolder.open(tmp_path / "run").predictions()
    sides = predictions.groupby("part")["group"].unique()
    assert not set(sides["train"]) & set(sides["test"]), "a user taught and was tested"


def people(folder: Path, shared: bool = True) -> tuple[Path, Path]:
    "Two tastes that show in books as in films; films are rated by 120 people, 60 of them rarely."
    rng = np.random.default_rng(0)
    taste = rng.normal(size=120)
    kinds = {"films": rng.normal(size=80), "books": rng.normal(size=60)}
    for name, things in kinds.items():
        rows = []
        for person in range(120):
            often = 40 if person < 60 or name == "books" else 14
            for thing in rng.permutation(len(things))[:often]:
                liking = 3 + 1.5 * taste[person] * things[thing] + 0.5 * rng.normal()
                who = f"p{person}" if shared or name == "films" else f"q{person}"
                rows.append((who, f"{name} {thing}", round(float(np.clip(liking, 1, 5)), 1)))
        pd.DataFrame(rows, columns=["user", "item", "rating"]).to_csv(folder / f"{name}.csv", index=False)
    return folder / "films.csv", folder / "books.csv"


def test_taste_that_shows_elsewhere_brings_what_is_liked_to_the_top(tmp_path):
    films, books = people(tmp_path)
    for name, more in (("with", (f"behaviour={books}",)), ("without", ())):
        code, _, errors = report("recommendation", tmp_path / name, f"ratings={films}", "budgets=10", *more)
        assert code == 0, errors
    best = {}
    for name in ("with", "without"):
        arms = check(tmp_path / name)["arms"]
        best[name] = next(
            row["mean"] for row in arms if row["arm"] == "source only" and row["metric"] == "ndcg"
        )
    assert best["with"] > best["without"] + 0.1, best


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("fewest=40", "too few for light users, busy users and a catalogue"),
        ("behaviour=books", "users rated in both domains"),
        ("headline_arm=trust", "headline_arm = 'trust' is not accepted"),
        ("light=0.05", "light = '0.05' is not accepted"),
    ],
)
def test_what_cannot_be_recommended_is_refused(extra, said, tmp_path):
    films, books = people(tmp_path, shared=False)
    code, _, errors = report(
        "recommendation", tmp_path / "run", f"ratings={films}", extra.replace("books", str(books))
    )
    assert code == 2 and said in errors, errors


def test_a_table_without_ratings_is_refused_by_its_columns(tmp_path):
    (tmp_path / "likes.csv").write_text("user,item\na,b\n")
    code, _, errors = report("recommendation", tmp_path / "run", f"ratings={tmp_path / 'likes.csv'}")
    assert code == 2 and "no column for the rating; it has user, item" in errors, errors
