"""What a network looked at: every number against one that is known, and every planted trap found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from tljupyter.backbones.inputs import InputSpec
from tljupyter.backbones.registry import random_backbone
from tljupyter.backbones.weights import load_backbone
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw
from tljupyter.domains.readers import read_arrays, read_images
from tljupyter.evidence.explanation.drift import linear_cka, stage_drift
from tljupyter.evidence.explanation.neighbours import nearest_cases
from tljupyter.evidence.explanation.saliency import (
    Attributions,
    baseline_images,
    by_grad_cam,
    by_integrated_gradients,
    grad_cam,
    integrated_gradients,
    last_spatial_stage,
    sanity_check,
    scorer,
)
from tljupyter.evidence.explanation.shortcuts import (
    CHEST_PARTS,
    LUNGS,
    CoveredItems,
    Part,
    borders,
    centre,
    corners,
    covered,
    shortcut_test,
)
from tljupyter.features.cache import FeatureCache
from tljupyter.freezing import FreezePlan
from tljupyter.refusals import Refusal
from tljupyter.training import TrainingSpec
from tljupyter.transfer.finetuning import FineTuned, pretrain
from tljupyter.transfer.inputs import Reading
from tljupyter.transfer.probe import LinearProbe, stage_features


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> Domain:
    found = load_digits()
    return read_arrays((found.images / 16).astype(np.float32), [str(d) for d in found.target], name="digits")


@pytest.fixture(scope="module")
def trained(digits):
    "A small network that knows the ten digits."
    spec = TrainingSpec(epochs=6, batch_size=32)
    return pretrain(digits.take(range(600)), random_backbone("digits_convnet"), spec)[0]


def pixels_of(domain: Domain, spec: InputSpec, rows) -> torch.Tensor:
    return torch.from_numpy(np.stack([spec(domain.items[i]) for i in rows]))


# Grad-CAM


@pytest.fixture(scope="module")
def corner_network() -> tuple[nn.Module, nn.Module]:
    "Class 1 is light in the upper left corner; no training needed to know where it should look."
    spatial = nn.Conv2d(1, 2, 1)
    network = nn.Sequential(spatial, nn.Flatten(), nn.Linear(2 * 64, 2))
    with torch.no_grad():
        spatial.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        spatial.bias.zero_()
        network[2].weight.zero_()
        network[2].weight[1].view(2, 8, 8)[0, :4, :4] = 1
    return network, spatial


def test_grad_cam_finds_the_light_and_leaves_the_network_alone(corner_network):
    network, layer = corner_network
    network.train()
    layer.eval()  # a frozen part of a network in training
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 1:3, 1:3] = 1
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heat = grad_cam(network, layer, image, [1])
    assert heat.shape == (1, 8, 8) and heat.max() == 1 and heat[0, 1:3, 1:3].min() == 1 and heat.sum() == 4
    assert grad_cam(network, layer, image, [0]).max() == 0
    assert network.training and not layer.training and not image.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


def test_grad_cam_of_a_trained_network_lies_on_the_planted_blob():
    rng, labels = np.random.default_rng(0), np.arange(200) % 2
    films, where = rng.uniform(0, 0.4, (200, 8, 8)).astype(np.float32), np.zeros((200, 8, 8), dtype=bool)
    for i in np.flatnonzero(labels):
        row, column = rng.integers(0, 6, 2)
        where[i, row : row + 3, column : column + 3] = True
    films[where] += 0.6
    domain = read_arrays(films, [("empty", "blob")[label] for label in labels])
    spec = TrainingSpec(epochs=8, batch_size=32)
    network, _ = pretrain(domain.take(range(160)), random_backbone("digits_convnet"), spec)
    asked = [i for i in range(160, 200) if labels[i]]
    pixels = pixels_of(domain, network.backbone.input, asked)
    code = domain.classes.index("blob")
    layer = last_spatial_stage(network.backbone).module
    maps = grad_cam(scorer(network), layer, pixels, [code] * len(asked))
    assert maps[where[asked]].mean() > 1.5 * maps[~where[asked]].mean()


def test_a_layer_without_height_or_of_another_network_is_refused(corner_network):
    network, layer = corner_network
    with pytest.raises(Refusal, match="height and width"):
        grad_cam(network, network[2], torch.zeros(1, 1, 8, 8))
    with pytest.raises(Refusal, match="not a part of the network"):
        by_grad_cam(network, nn.Conv2d(1, 2, 1))
    with pytest.raises(Refusal, match="from 0 to 1 each"):
        grad_cam(network, layer, torch.zeros(2, 1, 8, 8), [0, 2])
    with pytest.raises(Refusal, match="images, channels, height, width"):
        grad_cam(network, layer, torch.zeros(1, 8, 8))


# integrated gradients


def test_shares_of_a_linear_model_are_weight_times_distance_from_the_baseline():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 3))
    spec = InputSpec(size=(4, 5))  # three channels, each with its own black
    images = torch.randn(4, 3, 4, 5)
    for kind in ("black", "mean", "blurred"):
        baselines = baseline_images(images, spec, kind)
        found = integrated_gradients(model, images, baselines, [2, 0, 1, 1], steps=4)
        weight = model[1].weight.detach()[[2, 0, 1, 1]].view(4, 3, 4, 5)
        np.testing.assert_allclose(found.values, weight * (images - baselines), atol=1e-6)
        scores = (model(images) - model(baselines)).detach()[range(4), [2, 0, 1, 1]]
        np.testing.assert_allclose(found.values.sum((1, 2, 3)), scores, atol=1e-5)
        assert found.gaps.max() < 1e-5 and found.complete


def test_baselines_are_what_they_are_called():
    spec = InputSpec(size=(16, 16), mean=(0.5,), std=(0.25,), channels="L")
    black = spec(Image.new("L", (16, 16), 0))
    images = torch.randn(2, 1, 16, 16)
    np.testing.assert_allclose(baseline_images(images, spec, "black"), np.stack([black, black]))
    mean = baseline_images(images, spec, "mean")
    assert mean.std((2, 3)).max() < 1e-6 and torch.allclose(mean.mean((1, 2, 3)), images.mean((1, 2, 3)))
    blurred = baseline_images(images, spec, "blurred")
    assert (blurred.std((1, 2, 3)) < 0.4 * images.std((1, 2, 3))).all()
    with pytest.raises(Refusal, match='no baseline "blak".*Did you mean "black"'):
        baseline_images(images, spec, "blak")
    with pytest.raises(Refusal, match="give \\(images, 1, height, width\\)"):
        baseline_images(images.repeat(1, 3, 1, 1), spec, "black")
    with pytest.raises(Refusal, match="they must be alike"):
        integrated_gradients(nn.Flatten(), images, images[:1])
    with pytest.raises(Refusal, match="at least 2"):
        integrated_gradients(nn.Flatten(), images, images, steps=1)


def test_the_completeness_gap_is_seen_and_closes_with_more_steps(trained, digits):
    class Late(nn.Module):
        "The score begins on the last tenth of the way."

        def forward(self, x):
            late = torch.relu(x.mean((1, 2, 3)) - 0.9)
            return torch.stack([late, -late], 1)

    image, black = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    coarse, fine = (integrated_gradients(Late(), image, black, [0], steps) for steps in (3, 200))
    assert coarse.gap_shares[0] > 0.05 and not coarse.complete and "take more steps" in coarse.note
    assert fine.complete and fine.gaps[0] < coarse.gaps[0] / 10
    spec, whole = trained.backbone.input, scorer(trained)
    pixels = pixels_of(digits, spec, range(700, 704))
    found = integrated_gradients(whole, pixels, baseline_images(pixels, spec, "black"), steps=64)
    assert found.complete and found.classes.tolist() == whole(pixels).argmax(1).tolist()
    again = by_integrated_gradients(baseline_images(pixels, spec, "black"), 64)(whole, pixels, found.classes)
    np.testing.assert_allclose(again, found.values.sum(1), atol=1e-5)


def test_where_image_and_baseline_score_alike_no_share_is_invented():
    values = np.zeros((2, 1, 2, 2))
    values[0, 0, 0] = (1, -1)
    found = Attributions(values, np.array([0, 0]), np.zeros(2), 8)
    assert found.gap_shares == (None, None) and found.note.startswith("No completeness gap")
    assert np.isfinite(found.maps).all() and found.maps[0].max() == 1 and not found.maps[1].any()


# the sanity check


def shown(trained, digits, count=6):
    return pixels_of(digits, trained.backbone.input, range(700, 700 + count))


def test_a_trained_network_passes_and_keeps_its_weights(trained, digits):
    whole, layer = scorer(trained), last_spatial_stage(trained.backbone).module
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = sanity_check(whole, by_grad_cam(whole, layer), shown(trained, digits), copies=10)
    assert found.verdict == "passed" and found.steps[-1].shuffled == found.steps[-1].layers == 7
    assert all(0 <= step.low <= step.likeness <= step.high <= 1 for step in found.steps)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_an_edge_detector_fails(trained, digits):
    def edges(network, inputs, classes):
        return np.abs(np.gradient(inputs[:, 0].numpy(), axis=2))

    found = sanity_check(scorer(trained), edges, shown(trained, digits))
    assert found.verdict == "failed" and all(step.likeness == pytest.approx(1) for step in found.steps)


def test_a_map_that_only_changes_its_sign_fails(trained, digits):
    def signed(network, inputs, classes):
        sign = 1 if next(network.parameters()).detach().flatten()[0] > 0 else -1
        return sign * inputs[:, 0].numpy()

    assert sanity_check(scorer(trained), signed, shown(trained, digits)).verdict == "failed"


def test_maps_of_the_lowest_layer_fail_though_shuffling_everything_changes_them(trained, digits):
    "What shuffling all at once would let pass."
    whole = scorer(trained)
    first = trained.backbone.stages[0].module
    path = next(name for name, part in whole.named_modules() if part is first)

    def lowest(network, inputs, classes):
        with torch.no_grad():
            return network.get_submodule(path)(inputs)[:, 3].numpy()

    found = sanity_check(whole, lowest, shown(trained, digits, 12), copies=20)
    half = next(step for step in found.steps if 2 * step.shuffled >= step.layers)
    assert half.shuffled < half.layers and half.likeness == pytest.approx(1)
    assert found.steps[-1].high < half.low and found.verdict == "failed"


def test_what_a_network_has_not_got_cannot_be_shuffled_away():
    class Echo(nn.Module):
        "Whatever its weights, each class score is the sum of the image."

        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Identity(), nn.Parameter(torch.arange(9.0))

        def forward(self, x):
            return self.layer(x).sum((1, 2, 3))[:, None].repeat(1, 2)

    echo, films = Echo(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sanity_check(echo, by_grad_cam(echo, echo.layer), films, [1, 1, 1]).verdict == "failed"


def test_few_or_flat_maps_cannot_tell(trained, digits):
    whole, layer = scorer(trained), last_spatial_stage(trained.backbone).module
    two = sanity_check(whole, by_grad_cam(whole, layer), shown(trained, digits, 2))
    assert (two.verdict, two.steps) == ("cannot tell", ()) and "2 of 2 maps" in two.note
    flat = sanity_check(whole, lambda n, x, c: np.zeros((len(x), 4, 4)), shown(trained, digits))
    assert flat.verdict == "cannot tell" and "0 of 6 maps" in flat.note
    with pytest.raises(Refusal, match="at least 2 networks"):
        sanity_check(whole, by_grad_cam(whole, layer), shown(trained, digits), copies=1)


# neighbours


def test_neighbours_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    test, training = rng.normal(size=(15, 6)), rng.normal(size=(40, 6))
    labels, known = rng.integers(0, 3, 15), rng.integers(0, 3, 40)
    found = nearest_cases(test, training, 5, labels, known)
    for i, row in enumerate(test):
        cosines = [row @ other / np.sqrt((row @ row) * (other @ other)) for other in training]
        best = sorted(range(40), key=lambda j: -cosines[j])[:5]
        assert found.indices[i].tolist() == best
        np.testing.assert_allclose(found.similarities[i], [cosines[j] for j in best])
        assert found.agreement[i] == np.mean([known[j] == labels[i] for j in best])
    assert found.expected == pytest.approx(np.mean([np.mean(known == label) for label in labels]))


def test_notes_say_when_neighbours_contradict_the_label():
    training, known = np.eye(4)[[0, 0, 0, 1, 1, 2]], [0, 0, 0, 1, 1, 2]
    cases = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0.1, 1, 0, 0], [0, 0, 0, 0.0]])
    found = nearest_cases(cases, training, 3, [0, 1, 2, 0], known, [0, 0, 1, 0])
    assert found.notes[0] == "" and "look at the label again" in found.notes[1]
    assert found.notes[2] == "0 of 3 neighbours bear its label, 2 the predicted one"
    assert "like nothing" in found.notes[3] and found.similarities[3].tolist() == [0, 0, 0]
    none = nearest_cases(cases[:0], training, 3, [], [0] * 6)
    assert none.indices.shape == (0, 3) and "nothing can be said" in none.in_words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.ones((2, 3)), np.ones((4, 2))), "take both from one network"),
        ((np.ones((2, 3)), np.ones((4, 3)), 5), "from 1 to the 4 training cases"),
        ((np.ones((2, 3)), np.full((4, 3), np.inf)), "training case 0 has no number in feature 0"),
        ((np.ones((2, 3)), np.ones((4, 3)), 1, [0, -1], [0] * 4), "test case 1 has no label"),
        ((np.ones((2, 3)), np.ones((4, 3)), 1, [0, 1], [0] * 3), "4 training cases and labels"),
        ((np.ones(3), np.ones((4, 3))), "one row a test case"),
    ],
)
def test_neighbours_refuse_what_does_not_fit(arguments, said):
    with pytest.raises(Refusal, match=said):
        nearest_cases(*arguments)


# shortcuts


def planted(count: int, seed: int) -> Domain:
    "The class is a bright block in the upper left corner, and faintly the middle."
    rng, labels = np.random.default_rng(seed), np.arange(count) % 2
    films = rng.normal(100, 20, (count, 8, 8))
    films[:, :2, :2] += 90 * labels[:, None, None]
    films[:, 3:6, 3:6] += 4 * labels[:, None, None]
    return read_arrays(films.clip(0, 255).astype(np.uint8), [f"{label}" for label in labels])


@pytest.mark.slow
def test_a_planted_shortcut_is_found_in_the_corner_and_not_in_the_middle():
    model = FineTuned(
        random_backbone("digits_convnet"),
        FreezePlan.all(random_backbone("digits_convnet")),
        TrainingSpec(epochs=6, batch_size=32),
    ).fit(planted(300, 0))
    corner, middle = shortcut_test(
        model.predict_proba, planted(240, 1), {"corner": Part(((0, 0, 0.25, 0.25),)), "middle": centre(0.4)}
    )
    assert corner.uncovered > 0.95 and corner.share == 4 / 64
    assert corner.verdict == "relies on it" and corner.covered < 0.75 and corner.low > 0.2
    assert corner.control > corner.uncovered - 0.1  # as much covered anywhere costs little
    assert middle.verdict != "relies on it" and middle.covered > 0.95


def by_pixel(domain: Domain) -> np.ndarray:
    "A reader who looks at the upper left pixel only."
    ill = np.array([np.asarray(domain.items[i], dtype=float)[0, 0] / 255 for i in range(len(domain))])
    return np.stack([1 - ill, ill], axis=1)


def test_the_numbers_of_a_row_are_those_of_the_metric():
    domain = planted(120, 2)
    first, middle = shortcut_test(
        by_pixel, domain, {"pixel": Part(((0, 0, 0.125, 0.125),)), "middle": centre()}, fill="black"
    )
    plain = roc_auc_score(domain.labels, by_pixel(domain)[:, 1])
    assert first.uncovered == pytest.approx(plain) and first.covered == pytest.approx(0.5)
    assert first.fall == pytest.approx(plain - 0.5) and first.low < first.fall < first.high
    assert first.beyond == pytest.approx(first.control - first.covered)
    assert middle.covered == middle.uncovered and middle.fall == 0
    assert -middle.low == middle.high < 0.02  # paired: nothing changed in any case
    loss = shortcut_test(by_pixel, domain, {"pixel": Part(((0, 0, 0.125, 0.125),))}, "log_loss")[0]
    assert loss.fall == pytest.approx(loss.covered - loss.uncovered) and loss.fall > 0


@pytest.mark.slow
def test_when_as_much_anywhere_costs_the_same_nothing_is_said_against_the_place():
    "A reader of the mean of the whole image: every place counts alike."

    def by_mean(domain):
        ill = np.array([np.asarray(domain.items[i], dtype=float).mean() / 255 for i in range(len(domain))])
        return np.stack([1 - ill, ill], axis=1)

    rng, labels = np.random.default_rng(0), np.arange(300) % 2
    films = rng.normal(100, 60, (300, 12, 12)) + 6 * labels[:, None, None]
    domain = read_arrays(films.clip(0, 255).astype(np.uint8), [f"{label}" for label in labels])
    rows = shortcut_test(by_mean, domain, {"border": borders(0.3), "middle": centre(0.7)}, controls=5)
    assert all(row.fall > 0 and abs(row.beyond) < 0.06 for row in rows)
    assert all(row.verdict != "relies on it" for row in rows)


@pytest.mark.parametrize("fill", ["surroundings", "mean", "black"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (150, 200)])
def test_what_is_under_a_cover_does_not_shine_through(fill, shape):
    rng = np.random.default_rng(0)
    one = rng.integers(0, 255, shape, dtype=np.uint8)
    mask = LUNGS.at(*shape[:2])
    other = one.copy()
    other[mask] = 255 - other[mask]
    seen = [np.asarray(covered(Image.fromarray(image), mask, fill)) for image in (one, other)]
    assert (seen[0] == seen[1]).all() and (seen[0][~mask] == one[~mask]).all()
    assert (seen[0][mask] != one[mask]).any()


def test_a_control_covers_as_much_elsewhere():
    images = np.random.default_rng(0).integers(0, 255, (4, 20, 30), dtype=np.uint8)
    items = read_arrays(images, list("abab")).items
    moved = [CoveredItems(items, corners(0.3), moved=seed) for seed in (0, 1)]
    masks = [one.mask(i, 20, 30) for one in moved for i in range(4)]
    assert {int(mask.sum()) for mask in masks} == {int(corners(0.3).at(20, 30).sum())}
    assert len({mask.tobytes() for mask in masks}) > 5
    plain = CoveredItems(items, corners(0.3))
    known = [one.digest(i) for one in (*moved, plain, replace(plain, fill="mean"), items) for i in range(4)]
    known += [CoveredItems(items, corners(0.3).at(20, 30)).digest(0), CoveredItems(items, LUNGS).digest(0)]
    assert len(set(known)) == len(known)


def test_cached_features_of_covered_images_are_kept_apart(tmp_path):
    domain, parts = planted(60, 0), {"corner": corners(0.25), "middle": centre()}
    rows = []
    for cache in (None, FeatureCache(tmp_path), FeatureCache(tmp_path)):
        probe = LinearProbe(random_backbone("digits_convnet"), reading=Reading(cache)).fit(planted(40, 1))
        rows.append(shortcut_test(probe.predict_proba, domain, parts, controls=1))
    assert rows[0] == rows[1] == rows[2] and rows[0][0].covered != rows[0][0].uncovered


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ({}, "at least one part"),
        ({"all": np.ones((8, 8), dtype=bool)}, "all covers everything of image 0"),
        ({"none": np.zeros((8, 8), dtype=bool)}, "none covers nothing of image 0"),
        ({"thin": Part(((0, 0, 0.01, 1),))}, "thin covers nothing"),
        ({"other": np.eye(9, dtype=bool)}, "the mask is 9 x 9 and image 0 is 8 x 8"),
        ({"three": np.ones((3, 8, 8), dtype=bool)}, "3 masks for 10 images"),
        ({"numbers": np.ones((8, 8))}, "array of float64"),
    ],
)
def test_masks_that_cannot_be_are_refused(masks, said):
    with pytest.raises(Refusal, match=said):
        shortcut_test(by_pixel, planted(10, 0), masks)


def test_other_impossible_tests_are_refused():
    domain, parts = planted(10, 0), {"corner": corners()}
    for arguments, said in (
        ({"controls": 0}, "without a control"),
        ({"fill": "maen"}, 'Did you mean "mean"'),
        ({"metric": "acu"}, 'Did you mean "auc"'),
    ):
        with pytest.raises(Refusal, match=said):
            shortcut_test(by_pixel, domain, parts, **arguments)
    with pytest.raises(Refusal, match="at least two classes"):
        shortcut_test(by_pixel, domain.take([0, 2, 4]), parts)
    with pytest.raises(Refusal, match="shape \\(10, 2\\)"):
        shortcut_test(lambda d: by_pixel(d)[:, :1], domain, parts)
    with pytest.raises(Refusal, match="only images have parts"):
        shortcut_test(by_pixel, replace(domain, items=ArrayItems(np.zeros((10, 4)))), parts)
    with pytest.raises(Refusal, match="top < bottom"):
        Part(((0.5, 0, 0.2, 1),))
    with pytest.raises(Refusal, match="nothing would be left"):
        covered(Image.new("L", (4, 4)), np.ones((4, 4), dtype=bool))


# drift


def test_frozen_stages_do_not_drift_and_thawed_ones_do(trained, digits):
    few = digits.take(range(600, 660))
    tuned = FineTuned(trained.backbone, FreezePlan.last(trained.backbone, 1), TrainingSpec(epochs=8)).fit(few)
    pixels = pixels_of(digits, trained.backbone.input, range(700, 730))
    rows = {row.stage: row for row in stage_drift(trained.backbone, tuned.network_.backbone, pixels)}
    assert rows["stem"].weights == rows["block2"].weights == rows["block2"].statistics == 0
    assert rows["stem"].cka == pytest.approx(1) and rows["block2"].cka == pytest.approx(1)
    assert rows["block3"].weights > 0 and rows["block3"].cka < 1 - 1e-4
    assert rows["pool"].weights is None and rows["pool"].note == "no parameters" and rows["pool"].cka < 1


def test_drift_is_relative_and_sees_statistics(trained, digits):
    pixels, after = pixels_of(digits, trained.backbone.input, range(700, 720)), trained.backbone.copy()
    with torch.no_grad():
        for parameter in after.parameters_of("block2"):
            parameter *= 1.1
        for name, value in after.stage("block3").module.named_buffers():
            if name.endswith(("mean", "var")):
                value *= 2
    after.module.train()
    rows = {row.stage: row for row in stage_drift(trained.backbone, after, pixels)}
    assert rows["block2"].weights == pytest.approx(0.1, abs=1e-6) and rows["block3"].weights == 0
    assert rows["block3"].statistics == pytest.approx(1) and rows["stem"].statistics == 0
    assert all(part.training for part in after.module.modules())


def test_cka_is_that_of_its_definition_and_unbiased():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(12, 7)), rng.normal(size=(12, 5))
    other[:, :3] += one[:, :3]

    def centred(rows):  # Szekely and Rizzo's U-centring, another way to the same estimate
        n, inner = len(rows), rows @ rows.T
        np.fill_diagonal(inner, 0)
        found = inner - (inner.sum(0) / (n - 2))[:, None] - inner.sum(0) / (n - 2)
        found += inner.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(found, 0)
        return found

    a, b = centred(one), centred(other)
    assert linear_cka(one, other) == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    assert linear_cka(one + 100, 0.1 * other) == pytest.approx(linear_cka(one, other))
    chance = [linear_cka(rng.normal(size=(10, 3000)), rng.normal(size=(10, 3000))) for _ in range(40)]
    assert abs(np.mean(chance)) < 0.06
    assert linear_cka(one, np.zeros((12, 4))) is None


def test_drift_refuses_what_cannot_be_compared(trained, digits):
    pixels = pixels_of(digits, trained.backbone.input, range(700, 705))
    with pytest.raises(Refusal, match="different stages"):
        stage_drift(trained.backbone, random_backbone("small_groupnorm"), pixels)
    with pytest.raises(Refusal, match="give 4 or more of \\(1, 8, 8\\)"):
        stage_drift(trained.backbone, trained.backbone, pixels[:3])
    with pytest.raises(Refusal, match="the same 4 images"):
        linear_cka(np.ones((3, 2)), np.ones((3, 2)))


# real films


@pytest.mark.slow
def test_four_explanations_of_real_films(data_dir):
    path = data_dir / "weights_small_pretrained" / "squeezenet1_0_imagenet.safetensors"
    source = load_backbone("squeezenet1_0", path, 96)
    films = read_images(data_dir / "lung_kermany_pediatric")
    pool, test = films.take(films.where("train")), films.take(films.where("test"))
    few = pool.take(few_shot_draw(pool.labels, 10, seed=0).train)
    judged = test.take(few_shot_draw(test.labels, 30, seed=0).train)
    model = FineTuned(source, FreezePlan.last(source, 1), TrainingSpec(epochs=5)).fit(few)

    pixels = pixels_of(judged, source.input, range(0, 60, 15))
    whole, layer = scorer(model.network_), last_spatial_stage(model.network_.backbone).module
    check = sanity_check(whole, by_grad_cam(whole, layer), pixels)
    assert check.verdict == "passed"
    shares = integrated_gradients(whole, pixels[:1], baseline_images(pixels[:1], source.input, "mean"))
    assert shares.complete and shares.maps.shape == (1, 96, 96)

    rows = stage_drift(source, model.network_.backbone, pixels)
    assert [row.weights for row in rows[:-2]] == [0] * (len(rows) - 2) and rows[-2].weights > 0
    features = [stage_features(source, domain.items) for domain in (judged, few)]
    near = nearest_cases(*features, 3, judged.labels, few.labels)
    assert near.agreement.mean() > near.expected + 0.1

    lungs, corner = shortcut_test(
        model.predict_proba, judged, {"lungs": CHEST_PARTS["lungs"], "corners": corners(0.1)}, controls=1
    )
    assert lungs.fall > corner.fall and corner.verdict != "relies on it"
