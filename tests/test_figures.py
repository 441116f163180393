"""Pictures and faces: what is said, that it can be read at every width, and that nothing a user named can break a page."""

import base64
import io
import math
import shutil
import warnings
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from tljupyter.domains.domain import Domain
from tljupyter.domains.images import ImageArrays, ImageFiles
from tljupyter.evidence.explanation.drift import StageDrift
from tljupyter.evidence.explanation.neighbours import nearest_cases
from tljupyter.evidence.explanation.saliency import CascadeStep, SanityCheck
from tljupyter.evidence.explanation.shortcuts import CoveredPart, borders, corners
from tljupyter.evidence.results import results_from_predictions
from tljupyter.figures.curves import arms_plot, gain_plot
from tljupyter.figures.errors import confusion_counts, confusion_plot, reliability_bins, reliability_plot
from tljupyter.figures.explanation import covered_grid, drift_plot, neighbours_grid, shortcut_plot
from tljupyter.figures.faces import ATTRIBUTES, SHEET, TAGS, Face, Picture
from tljupyter.figures.history import training_plot
from tljupyter.figures.images import Mistake, examples_grid, mistakes_grid, thumbnail, worst_mistakes
from tljupyter.figures.saliency import overlay, saliency_grid
from tljupyter.figures.style import NARROW, OKABE_ITO, WIDE, looks
from tljupyter.figures.verdicts import verdict_card, verdict_table
from tljupyter.figures.words import SHAPES, count, duration, interval_text, points, shape, verdict_sentences
from tljupyter.refusals import Refusal

NASTY = '<script>alert("$x")</script>'
SKILLS = {
    "majority": (0, 0, 0),
    "from scratch": (0.2, 1.0, 2.0),
    "linear probe": (1.6, 1.8, 2.0),
    "fine-tuned": (1.2, 1.9, 2.4),
}


def run(classes=2, cases=120, draws=4, budgets=(5, 20, 50), arms=tuple(SKILLS), seed=0) -> pd.DataFrame:
    "Invented predictions of a whole run: every arm a little better with more labels, the baseline most."
    rng = np.random.default_rng(seed)
    labels = np.arange(cases) % classes
    parts = []
    for b, budget in enumerate(budgets):
        for draw in range(draws):
            for arm in arms:
                scores = rng.normal(0, 1, (cases, classes)) * (arm != "majority")
                scores[np.arange(cases), labels] += SKILLS.get(arm, SKILLS["linear probe"])[b]
                chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
                part = pd.DataFrame({f"p_{code}": chances[:, code] for code in range(classes)})
                part = part.assign(
                    label=labels, predicted=chances.argmax(1), case=[f"film {i}" for i in range(cases)]
                )
                parts.append(
                    part.assign(
                        labels_per_class=budget, draw=draw, arm=arm, part="test", group="", threshold=0.5
                    )
                )
    return pd.concat(parts, ignore_index=True)


HEADLINE = {
    "metric": "balanced_accuracy",
    "labels_per_class": 5,
    "arm": "linear probe",
    "baseline": "from scratch",
}
CLASSES = ("NORMAL", "PNEUMONIA")


@pytest.fixture(scope="module")
def predictions() -> pd.DataFrame:
    return run()


@pytest.fixture(scope="module")
def results(predictions) -> dict:
    return results_from_predictions(predictions, CLASSES, HEADLINE, replicates=200)


def history(epochs: int = 12) -> list[dict[str, float]]:
    return [
        {
            "epoch": e,
            "loss": 0.7 * 0.8**e,
            "valid_loss": 0.5,
            "accuracy": 1 - 0.5 * 0.8**e,
            "boundary": 9 - 4 * (e > 5),
        }
        for e in range(epochs)
    ]


@pytest.fixture(scope="module")
def pictures(predictions, results) -> dict[str, Picture]:
    many = run(classes=12, cases=240, draws=2, budgets=(5,), seed=1)
    long_names = ["a very long name of a class", "another long name", "$5 to $10"]
    arms = (*SKILLS, "domain-adversarial", "importance weighting")
    crowd = results_from_predictions(run(arms=arms), CLASSES, HEADLINE, replicates=100)
    alone = results_from_predictions(run(draws=1, budgets=(5,)), CLASSES, HEADLINE, replicates=100)
    return {
        "gain": gain_plot(results),
        "gain of a crowd": gain_plot(crowd, "auc"),
        "gain of one draw": gain_plot(alone),
        "arms": arms_plot(results),
        "arms of a crowd": arms_plot(crowd),
        "calibration": arms_plot(results, "adaptive_calibration_error"),
        "confusion": confusion_plot(predictions, CLASSES, 5),
        "one confusion": confusion_plot(predictions, CLASSES, 5, ["fine-tuned"]),
        "twelve classes": confusion_plot(many, [f"class {i}" for i in range(12)], 5),
        "long names": confusion_plot(run(classes=3, draws=2), long_names, 5),
        "reliability": reliability_plot(predictions, CLASSES, 5, list(SKILLS)),
        "reliability of many": reliability_plot(many, [f"class {i}" for i in range(12)], 5),
        "history": training_plot({"fine-tuned": history(), "from scratch": history(20)}),
        "one epoch": training_plot({"fine-tuned": [{"epoch": 0, "loss": 0.7}]}),
        "shortcuts": shortcut_plot([covered(name) for name in ("borders", "corners", "all but the lungs")]),
        "drift": drift_plot(drift(4)),
        "drift of many": drift_plot(drift(24)),
    }


def covered(name: str) -> CoveredPart:
    numbers = (0.9, 0.7, 0.2, 0.1, 0.3, 0.85, 0.15, 0.05, 0.25)
    return CoveredPart(name, 0.36, "balanced_accuracy", 120, *numbers, "no more than elsewhere")


def drift(stages: int) -> list[StageDrift]:
    rows = [StageDrift(f"features.{i}", 10, 0.01 * i, None, 1 - 0.02 * i, "") for i in range(stages - 1)]
    return [*rows, StageDrift("pool", 0, None, None, None, "no parameters")]


# words


def test_the_four_shapes_are_in_the_font_that_every_matplotlib_has():
    font = matplotlib.ft2font.FT2Font(matplotlib.font_manager.findfont("DejaVu Sans"))
    assert all(ord(sign) in font.get_charmap() for sign in (*SHAPES.values(), "−", "±", "…"))
    with pytest.raises(Refusal, match='Did you mean "helps"'):
        shape("help")


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.26, "+26"),
        (-0.26, "−26"),
        (0.034, "+3.4"),
        (0.0994, "+9.9"),
        (0.0996, "+10"),
        (0.0, "0"),
        (1.0, "+100"),
        (None, "–"),
    ],
)
def test_gains_have_two_digits(gain, said):
    assert points(gain) == said


def test_an_interval_never_ends_at_zero_unless_it_does():
    rng = np.random.default_rng(0)
    for low, width in zip(rng.normal(0, 0.05, 300) ** 3, rng.uniform(0, 0.3, 300), strict=True):
        for end, said in zip(
            (low, low + width), interval_text(low, low + width).strip("[]").split(", "), strict=True
        ):
            value = float(said.replace("−", "-"))
            assert math.copysign(1, value) == math.copysign(1, end) and value != 0
            assert abs(value - 100 * end) <= 0.5
    assert interval_text(0.0, 0.1) == "[0, +10]" and interval_text(None, 0.1) == "[no interval]"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (80, "1 min 20 s"),
        (3599.9, "1 h"),
        (7380, "2 h 3 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_times_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_budgets_with_one_verdict_share_a_sentence():
    rows = [
        {"labels_per_class": k, "verdict": v} for k, v in ((1, "hurts"), (5, "cannot tell"), (10, "hurts"))
    ]
    assert verdict_sentences(rows) == ["▼ Transfer hurts at 1 and 10 labels a class.", "◆ Cannot tell at 5."]
    assert verdict_sentences(rows[:1]) == ["▼ Transfer hurts at 1 label a class."]
    assert count(1, "film") == "1 film" and count(1200, "film") == "1,200 films"


def test_an_arm_looks_the_same_whoever_else_is_drawn():
    alone, together = looks(["linear probe", "zebra"]), looks(["zebra", "majority", "linear probe"])
    assert alone["linear probe"] == together["linear probe"] and alone["zebra"] == together["zebra"]
    many = looks([*SKILLS, *(f"method {i}" for i in range(12))])
    assert len(set(many.values())) == len(many)


# pictures


def inner_texts(figure):
    return [
        text
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_text().strip() and text.get_visible()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_letter_is_large_enough_inside_the_picture_and_off_its_neighbours(pictures, width):
    for name, picture in pictures.items():
        figure = picture.figure(width)
        figure.draw_without_rendering()
        edges, boxes = figure.bbox, []
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in axis.get_major_ticks():
                    tick.label1.set_visible(bool(tick.label1.get_visible() and low <= tick.get_loc() <= high))
        for text in inner_texts(figure):
            assert text.get_fontsize() >= 9, (name, text.get_text())
            box = text.get_window_extent()
            assert box.x0 >= edges.x0 - 1 and box.x1 <= edges.x1 + 1, (name, text.get_text())
            assert box.y0 >= edges.y0 - 1 and box.y1 <= edges.y1 + 1, (name, text.get_text())
            if not text.get_rotation():
                boxes.append((text.get_text(), box.padded(-1.5)))
        touching = [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]
        assert not touching, (name, touching)


@pytest.mark.slow
def test_pictures_are_small_sharp_and_leave_matplotlib_as_it_was(pictures):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a layout that failed is only a warning
        sizes = {name: (len(p.png(WIDE)), len(p.png(NARROW))) for name, p in pictures.items()}
    assert all(max(size) < 60_000 for name, size in sizes.items() if name != "twelve classes"), sizes
    assert max(sizes["twelve classes"]) < 100_000
    assert Image.open(io.BytesIO(pictures["gain"].png())).width == int(WIDE * 192)
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


@pytest.mark.slow
def test_a_picture_is_the_same_each_time_it_is_drawn(pictures):
    assert all(pictures[name].png(NARROW) == pictures[name].png(NARROW) for name in ("gain", "reliability"))


def test_the_gain_plot_says_what_the_results_say(results):
    picture = gain_plot(results)
    rows = [
        row
        for row in results["comparisons"]
        if row["metric"] == "balanced_accuracy" and row["baseline"] == "from scratch"
    ]
    for row in rows:
        if row["arm"] != "majority":
            said = f"{points(row['gain'])} {interval_text(row['low'], row['high'])} at {row['labels_per_class']} ({row['verdict']})"
            assert said in picture.alt
    axes = picture.figure().axes[0]
    drawn = {
        (line.get_marker(), round(float(line.get_ydata()[0]), 6))
        for line in axes.lines
        if line.get_marker() in "^vsD"
    }
    marker = dict(zip(SHAPES, "^vsD", strict=True))
    assert drawn == {(marker[r["verdict"]], round(r["gain"], 6)) for r in rows if r["arm"] != "majority"}
    headline = next(row for row in rows if not row["exploratory"])
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    assert bold == [f"{points(headline['gain'])} {interval_text(headline['low'], headline['high'])}"]


def test_single_draws_are_drawn_where_they_are(results):
    axes = arms_plot(results).figure().axes[0]
    pale = sorted(float(y) for line in axes.lines if line.get_alpha() == 0.3 for y in line.get_ydata())
    rows = [
        row for row in results["arms"] if row["metric"] == "balanced_accuracy" and row["arm"] != "majority"
    ]
    assert pale == pytest.approx(sorted(value for row in rows for value in row["values"]))


def test_results_of_the_documented_form_without_single_draws_are_enough(results):
    keys = ("arm", "baseline", "metric", "labels_per_class", "draws", "gain", "low", "high", "verdict")
    bare = {
        "headline": HEADLINE,
        "margin": 0.02,
        "comparisons": [
            {key: row[key] for key in keys} | {"exploratory": row["exploratory"]}
            for row in results["comparisons"]
        ],
        "arms": [
            {key: row[key] for key in ("arm", "metric", "labels_per_class", "mean", "low", "high")}
            for row in results["arms"]
        ],
    }
    assert gain_plot(bare).alt == gain_plot(results).alt and arms_plot(bare).alt == arms_plot(results).alt


@pytest.mark.parametrize("plot", [gain_plot, arms_plot])
def test_an_unknown_metric_is_refused_with_those_there_are(plot, results):
    with pytest.raises(Refusal, match='balanced_acuracy.*Did you mean "balanced_accuracy"'):
        plot(results, "balanced_acuracy")


def test_a_training_without_numbers_is_refused():
    with pytest.raises(Refusal, match="epoch and loss"):
        training_plot({"fine-tuned": []})


def test_stages_that_thaw_are_marked_at_their_epoch():
    lines = training_plot({"fine-tuned": history()}).figure().axes[0].lines
    assert [line.get_xdata()[0] for line in lines if len(set(line.get_xdata())) == 1] == [7]


# errors


def test_confusion_counts_are_those_of_scikit_learn(predictions):
    cases = predictions[(predictions["arm"] == "fine-tuned") & (predictions["labels_per_class"] == 20)]
    assert confusion_counts(cases, 2) * 4 == pytest.approx(
        confusion_matrix(cases["label"], cases["predicted"])
    )


@pytest.mark.parametrize("plot", [confusion_plot, reliability_plot])
def test_what_was_not_run_is_refused_by_name(plot, predictions):
    with pytest.raises(Refusal, match="7 labels a class.*5, 20 and 50"):
        plot(predictions, CLASSES, 7)
    with pytest.raises(Refusal, match='Did you mean "fine-tuned"'):
        plot(predictions, CLASSES, 5, ["fine tuned"])


def test_bins_hold_equally_many_cases_and_repeated_draws_are_no_evidence():
    rng = np.random.default_rng(0)
    chance = rng.uniform(size=400)
    one = pd.DataFrame(
        {"p_0": 1 - chance, "p_1": chance, "label": (rng.uniform(size=400) < chance).astype(int)}
    )
    one = one.assign(case=[f"film {i}" for i in range(400)])
    once, ten_times = reliability_bins(one), reliability_bins(pd.concat([one] * 10))
    assert once["cases"].tolist() == [50] * 8
    assert (ten_times["high"] - ten_times["low"]).to_numpy() == pytest.approx(
        (once["high"] - once["low"]).to_numpy()
    )
    assert ((once["low"] <= once["predicted"]) & (once["predicted"] <= once["high"])).sum() >= 7


def test_equal_probabilities_share_one_bin(predictions):
    assert len(reliability_bins(predictions[predictions["arm"] == "majority"])) == 1


# faces


class Page(HTMLParser):
    "Reads a page and keeps what it is made of; complains about tags that do not close."

    ALONE = {"img", "source", "line", "rect", "path"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.images, self.words = [], set(), set(), [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.images += [dict(attrs)] if tag == "img" else []
        self.open += [tag] if tag not in self.ALONE else []

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def nasty_domain() -> Domain:
    rng = np.random.default_rng(0)
    return Domain(
        name="films",
        items=ImageArrays(rng.uniform(size=(40, 64, 48))),
        labels=np.arange(40) % 2,
        classes=("NORMAL", NASTY),
        groups=None,
        splits=None,
        names=np.array([f'a/"{NASTY}{i}.png' for i in range(40)]),
    )


@pytest.fixture(scope="module")
def faces(results, pictures, nasty_domain) -> dict[str, Face | Picture]:
    mistake = Mistake(str(nasty_domain.names[1]), label=1, predicted=0, probability=0.97, wrong=3, draws=4)
    films = [nasty_domain.items[i] for i in range(2)]
    maps = np.stack([np.eye(8), np.zeros((8, 8))])
    check = SanityCheck("failed", (CascadeStep(3, 3, 0.8, 0.7, 0.9),), NASTY)
    near = nearest_cases(np.eye(3), np.ones((3, 3)), 2, [0, 1, 0], [0, 1, 0], [1, 1, 0])
    three = nasty_domain.take(range(3))
    return {
        "card": verdict_card(results, NASTY, NASTY, {NASTY: NASTY}),
        "table": verdict_table(results),
        "examples": examples_grid(nasty_domain, range(20), drawn=[0, 1]),
        "mistakes": mistakes_grid(nasty_domain, [mistake], {mistake.case: [2, 3]}),
        "no mistakes": mistakes_grid(nasty_domain, []),
        "saliency": saliency_grid(films, maps, [NASTY, "normal"], check, NASTY),
        "covered": covered_grid(nasty_domain, 0, {NASTY: borders(), "corners": corners()}),
        "neighbours": neighbours_grid(three, three, near, [1, 1, 0]),
        "picture": Picture(pictures["gain"].draw, NASTY),
    }


def test_faces_are_made_of_the_listed_tags_only_and_escape_what_users_name(faces):
    for name, face in faces.items():
        page = Page(face._repr_html_())
        assert page.tags <= TAGS, name
        allowed = {
            (tag, attribute)
            for tag, attribute in page.attributes
            if attribute in ATTRIBUTES["*"] | ATTRIBUTES.get(tag, set())
        }
        assert page.attributes == allowed, (name, page.attributes - allowed)
        assert all(image["alt"] for image in page.images), name
        assert all(image["src"].startswith("data:image/") for image in page.images), name
    assert NASTY in "".join(Page(faces["card"]).words)


def test_the_card_says_verdict_gain_and_doubt_in_this_order(results):
    card = verdict_card(results, "Lung X-ray", "SqueezeNet")
    row = next(row for row in results["comparisons"] if not row["exploratory"])
    said = [
        *verdict_sentences([row])[0].split(" ", 1)[:1],
        points(row["gain"]),
        interval_text(row["low"], row["high"]),
    ]
    places = [card.index(text) for text in (*said, "Declared before anything ran")]
    assert places == sorted(places)
    for budget in (5, 20, 50):
        assert str(budget) in "".join(Page(card).words)


def test_a_run_stopped_before_its_headline_still_has_a_card(results):
    stopped = {
        **results,
        "comparisons": [row for row in results["comparisons"] if row["labels_per_class"] != 5],
    }
    card = verdict_card(stopped, "Lung X-ray", "SqueezeNet")
    assert "stopped before it reached" in card and "Declared before anything ran" in card
    nothing = {**results, "comparisons": [], "arms": []}
    assert "stopped before it reached" in verdict_card(nothing, "Lung X-ray", "SqueezeNet")
    with pytest.raises(Refusal, match="no comparison"):
        verdict_table(nothing)


def test_the_table_marks_the_declared_row_and_holds_word_and_shape(results):
    table = verdict_table(results)
    assert table.count("(declared)") == 1
    rows = [
        row
        for row in results["comparisons"]
        if row["metric"] in ("balanced_accuracy", "accuracy", "auc")
        and row["baseline"] == "from scratch"
        and row["arm"] != "majority"
    ]
    assert table.count("<tr") == 1 + 6 + len(rows)
    for verdict in {row["verdict"] for row in rows}:
        assert table.count(f">{SHAPES[verdict]}<") == sum(row["verdict"] == verdict for row in rows)


def test_a_gain_without_interval_is_a_dash_not_a_failure(results):
    unknown = [
        {**row, "gain": None, "low": None, "high": None, "verdict": "cannot tell"}
        for row in results["comparisons"]
    ]
    table = verdict_table({**results, "comparisons": unknown})
    assert "[no interval]" in table and "<svg" not in table
    assert "–" in verdict_card({**results, "comparisons": unknown}, "x", "y")


def pixels(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def test_thumbnails_keep_grey_grey_and_small_images_exact():
    rng = np.random.default_rng(0)
    film = pixels(thumbnail(Image.fromarray(rng.integers(0, 256, (900, 600)).astype(np.uint8))))
    assert film.mode == "L" and max(film.size) == 176 and film.size == (117, 176)
    digit = rng.integers(0, 256, (8, 8)).astype(np.uint8)
    assert (np.asarray(pixels(thumbnail(Image.fromarray(digit))))[::22, ::22] == digit).all()


def test_drawn_labels_come_first_and_are_ringed_in_words_too(nasty_domain):
    page = Page(examples_grid(nasty_domain, range(40), drawn=[38, 39], per_class=3))
    assert len(page.images) == 6
    ringed = [i for i, image in enumerate(page.images) if "a drawn label" in image["alt"]]
    assert ringed == [0, 3]


def test_several_findings_an_item_are_refused(nasty_domain):
    from dataclasses import replace

    with pytest.raises(Refusal, match="multilabel"):
        examples_grid(replace(nasty_domain, labels=np.zeros((40, 2), np.int8)), range(4))


def test_the_worst_mistakes_are_sure_and_made_by_most_draws():
    rows = [  # case, label, then whether and how surely each of three draws was wrong
        ("once", 0, (0.9, 0.1, 0.1)),
        ("twice", 0, (0.9, 0.6, 0.1)),
        ("always", 1, (0.8, 0.7, 0.9)),
        ("never", 1, (0.2, 0.1, 0.3)),
    ]
    cases = pd.DataFrame(
        [
            {
                "case": case,
                "label": label,
                "draw": draw,
                f"p_{1 - label}": wrong,
                f"p_{label}": 1 - wrong,
                "predicted": 1 - label if wrong > 0.5 else label,
            }
            for case, label, chances in rows
            for draw, wrong in enumerate(chances)
        ]
    ).assign(arm="linear probe", labels_per_class=5, part="test")
    found = worst_mistakes(cases, "linear probe", 5)
    assert [(one.case, one.predicted, one.wrong, one.draws) for one in found] == [
        ("always", 0, 3, 3),
        ("twice", 1, 2, 3),
    ]
    assert found[0].probability == pytest.approx(0.8)


def test_mistakes_of_other_data_are_refused(nasty_domain):
    with pytest.raises(Refusal, match="no item called film 7"):
        mistakes_grid(nasty_domain, [Mistake("film 7", 0, 1, 0.9, 3, 4)])


# saliency


def test_a_grid_says_what_the_check_found_and_where_nothing_speaks_for_a_class():
    films, maps = [Image.new("L", (8, 8))] * 2, np.stack([np.eye(8), -np.eye(8)])
    checks = {verdict: SanityCheck(verdict, (), "why") for verdict in ("passed", "failed", "cannot tell")}
    said = {verdict: saliency_grid(films, maps, ["x", "y"], check) for verdict, check in checks.items()}
    assert "Sanity check passed: why" in said["passed"] and "do not read" in said["failed"]
    assert "Sanity check undecided" in said["cannot tell"]
    assert "x</span>" in said["passed"] and "y; nothing in the film speaks for it" in said["passed"]
    assert "blue against it" in said["passed"]
    assert "blue against it" not in saliency_grid(films[:1], maps[:1], ["x"])


def test_an_overlay_leaves_cold_places_grey():
    heat = np.zeros((8, 8))
    heat[:4] = 1
    mixed = np.asarray(overlay(Image.new("L", (80, 80), 128), heat)).astype(int)
    assert (mixed[60:] == 128).all() and np.ptp(mixed[:20], axis=2).min() > 80
    against = np.asarray(overlay(Image.new("L", (80, 80), 128), -heat)).astype(int)
    assert (against[:20, :, 2] > against[:20, :, 0]).all() and (mixed[:20, :, 0] > mixed[:20, :, 2]).all()


def test_unequal_numbers_of_maps_are_refused():
    with pytest.raises(Refusal, match="2 pictures, 1 maps and 1 captions"):
        saliency_grid([Image.new("L", (8, 8))] * 2, np.ones((1, 8, 8)), ["x"])


# explanation


def test_explanations_of_nothing_or_of_other_cases_are_refused(nasty_domain):
    for draw in (shortcut_plot, drift_plot):
        with pytest.raises(Refusal, match="no rows to draw"):
            draw([])
    near = nearest_cases(np.eye(3), np.eye(3), 2)
    with pytest.raises(Refusal, match="3 rows of neighbours for 2 test and 40 training"):
        neighbours_grid(nasty_domain.take([0, 1]), nasty_domain, near)


def test_the_words_of_a_shortcut_plot_carry_the_numbers_of_its_rows():
    assert (
        "borders (36 % of the area): +20 [+10, +30], anywhere +5.0, no more"
        in shortcut_plot([covered("borders")]).alt
    )


# real films and a real browser


def test_real_films_become_a_small_grid(data_dir):
    root = data_dir / "lung_kermany_pediatric"
    table = pd.read_csv(root / "labels.csv").groupby("label").head(8)
    files, classes = table["file"].to_list(), tuple(sorted(table["label"].unique()))
    labels = np.array([classes.index(label) for label in table["label"]])
    domain = Domain("films", ImageFiles(root, files), labels, classes, None, None, np.array(files))
    grid = examples_grid(domain, range(16), drawn=range(0, 16, 3))
    assert len(grid) < 150_000 and grid.count("<img") == 16
    assert all(pixels(image["src"]).mode == "L" for image in Page(grid).images)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=quiet.split())
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_a_page_of_faces_fits_reads_and_asks_for_nothing(browser, faces, tmp_path, width, scheme):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="viewport" content="width=device-width">'
    colours = "background:#fff;color:#111" if scheme == "light" else "background:#111;color:#eee"
    body = "".join(face._repr_html_() for face in faces.values())
    (tmp_path / "page.html").write_text(
        f'<!doctype html><html lang="en">{head}<body style="{colours}">{body}</html>'
    )
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    small = "[...document.querySelectorAll('.tl-face *')].map(e => parseFloat(getComputedStyle(e).fontSize)).filter(s => s < 12)"
    assert page.evaluate(small) == []
    shown = page.evaluate(
        "(p => [p.clientWidth, getComputedStyle(p).filter])(document.querySelector('.tl-picture img'))"
    )
    assert shown[0] == (int(NARROW * 96) if width == 390 else int(WIDE * 96))
    assert ("invert" in shown[1]) == (scheme == "dark")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and complaints == []
    context.close()


def test_the_sheet_names_no_colour_of_letters_or_paper():
    import re

    named = {colour.lower() for colour in re.findall(r"(?<!background:)#[0-9a-fA-F]{3,6}\b", SHEET)}
    assert named <= {*OKABE_ITO.values(), "#7d858e"}
