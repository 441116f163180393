"""Real sets as cached features: data that is here already, or the setting's data folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

SEED, FILMS = 0, 600


@dataclass(frozen=True, eq=False)
class Cached:
    "Cases as rows of numbers."

    features: np.ndarray  # (n, features)
    labels: np.ndarray  # (n,) class codes
    groups: np.ndarray | None = None  # (n,) patients


@dataclass(frozen=True)
class Known:
    "A set with many labels, of which a person would have few."

    title: str
    data: str  # folder of the data set; empty when scikit-learn carries it
    read: Callable[[Path], Cached]
    have: tuple[int, ...]  # labels a class that a person has


def digits(_: Path, only: tuple[int, ...] = tuple(range(10))) -> Cached:
    "Handwritten digits of 8 x 8 pixels."
    from sklearn.datasets import load_digits

    pixels, found = load_digits(return_X_y=True)
    kept = np.isin(found, only)
    return Cached(pixels[kept], np.unique(found[kept], return_inverse=True)[1])


def reviews(folder: Path, kind: str) -> Cached:
    "Reviews of one kind of product as counted words: positive or negative."
    from tljupyter.domains.texts import read_texts
    from tljupyter.features.texts import BagOfWords

    texts = read_texts(
        folder / "reviews.csv.gz", ["title", "text"], "label", only={"domain": kind}, name=kind
    )
    return Cached(BagOfWords().fit(texts).transform(texts), texts.labels)


def credit(folder: Path) -> Cached:
    "Credit card clients: who will default? About one in five did."
    from tljupyter.domains.tables import read_rows
    from tljupyter.features.tables import TableColumns

    codes = ("SEX", "MARRIAGE", "EDUCATION")
    table = folder / "taiwan_default.csv.gz"
    rows = read_rows(table, "default", leave_out=["ID"], categories=codes, name="credit")
    rows = rows.take(np.sort(np.random.default_rng(SEED).permutation(len(rows))[:8000]))
    return Cached(TableColumns().fit(rows).transform(rows), rows.labels)


def films(folder: Path) -> Cached:
    "Chest X-rays of children through a frozen SqueezeNet."
    from tljupyter.backbones.weights import load_backbone
    from tljupyter.domains.readers import read_folder
    from tljupyter.transfer.probe import stage_features

    weights = folder.parent / "weights_small_pretrained" / "squeezenet1_0_imagenet.safetensors"
    images = read_folder(folder)
    images = images.take(np.sort(np.random.default_rng(SEED).permutation(len(images))[:FILMS]))
    backbone = load_backbone("squeezenet1_0", weights=weights)
    return Cached(stage_features(backbone, images.items), images.labels, images.groups)


SETS: Mapping[str, Known] = {
    "digits-35": Known("handwritten 3 or 5", "", partial(digits, only=(3, 5)), (15,)),
    "digits-49": Known("handwritten 4 or 9", "", partial(digits, only=(4, 9)), (15,)),
    "digits": Known("ten handwritten digits", "", digits, (15,)),
    "electronics": Known(
        "reviews of electronics", "text_amazon_multidomain", partial(reviews, kind="electronics"), (50, 100)
    ),
    "dvd": Known("reviews of DVDs", "text_amazon_multidomain", partial(reviews, kind="dvd"), (100,)),
    "credit": Known("credit card default", "finance_taiwan_default", credit, (100,)),
    "films": Known("chest X-rays of children", "lung_kermany_pediatric", films, (30,)),
}
