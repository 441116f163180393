"""Domains: readers, draws, splits, the gate and augmentations, on toy data of known faults and on real films."""

import io
import threading
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from tljupyter.domains.augmentations import AUGMENTATIONS, PROPERTIES, Augmentations, allowed
from tljupyter.domains.copies import near_duplicates, sketch
from tljupyter.domains.domain import ArrayItems, Domain
from tljupyter.domains.draws import few_shot_draw, folds, split_groups, with_test_side
from tljupyter.domains.findings import KINDS
from tljupyter.domains.gate import check
from tljupyter.domains.images import ImageArrays
from tljupyter.domains.readers import read_arrays, read_folder, read_images, read_npz, read_table
from tljupyter.refusals import ImpossibleSplit, Refusal

# Toy data


def film(seed: int, side: int = 128) -> Image.Image:
    "A picture with detail; another seed gives another picture."
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    return Image.fromarray(((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8))


def saved_again(image: Image.Image) -> Image.Image:
    "A copy that has other pixels: a little cropped, smaller, a poor JPEG."
    width, height = image.size
    stored = io.BytesIO()
    image.crop((3, 0, width, height - 4)).resize((width - 20, height - 20)).save(stored, "jpeg", quality=50)
    return Image.open(stored).convert("L")


class Pictures:
    "Pictures at hand as items."

    def __init__(self, pictures: list[Image.Image]):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Image.Image:
        return self.pictures[i]

    def digest(self, i: int) -> str:
        return str(hash(self.pictures[i].tobytes()))


def domain_of(pictures, labels, groups=None, splits=None) -> Domain:
    names = sorted({label for label in labels if label})
    return Domain(
        name="toy",
        items=pictures if hasattr(pictures, "digest") else Pictures(pictures),
        labels=np.array([names.index(label) if label else -1 for label in labels]),
        classes=tuple(names),
        groups=None if groups is None else np.array(list(groups)),
        splits=None if splits is None else np.array(splits),
        names=np.array([f"{i}.png" for i in range(len(labels))]),
    )


def kinds(report) -> list[str]:
    return [one.kind for one in report.findings]


def the(report, kind: str):
    [one] = [one for one in report.findings if one.kind == kind]
    return one


@pytest.fixture
def folder(tmp_path):
    "Writes files under a folder: pictures by name, or text."

    def write(files: dict[str, object]):
        for number, (name, content) in enumerate(files.items()):
            path = tmp_path / "films" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            else:
                (content or film(number, 64)).save(path)
        return tmp_path / "films"

    return write


# Draws


@pytest.fixture(params=range(6))
def grouped(request):
    "Labels of three unequal classes and groups of unequal size, some with several classes."
    rng = np.random.default_rng(request.param)
    labels = rng.choice(3, 240, p=[0.5, 0.3, 0.2])
    return labels, rng.integers(0, 90, 240), request.param


def test_draws_are_seeded_balanced_and_nested(grouped):
    labels, groups, seed = grouped
    pool = np.flatnonzero(np.arange(240) % 4)
    draws = [few_shot_draw(labels, k, seed, groups, pool) for k in (1, 2, 5, 10)]
    for draw in draws:
        assert np.bincount(labels[draw.train]).tolist() == [draw.labels_per_class] * 3
        assert len(set(draw.train)) == len(draw.train) and set(draw.train) <= set(pool)
        assert (draw.train == few_shot_draw(labels, draw.labels_per_class, seed, groups, pool).train).all()
    for smaller, larger in zip(draws, draws[1:], strict=False):
        assert set(smaller.train) < set(larger.train)
    assert set(draws[2].train) != set(few_shot_draw(labels, 5, seed + 100, groups, pool).train)


def test_a_draw_takes_a_second_item_of_a_group_only_when_every_group_gave_one(grouped):
    labels, groups, seed = grouped
    drawn = few_shot_draw(labels, 15, seed, groups).train
    for code in range(3):
        taken = Counter(groups[drawn[labels[drawn] == code]].tolist())
        offered = Counter(groups[labels == code].tolist())
        assert all(taken[group] >= min(max(taken.values()) - 1, offered[group]) for group in offered)


def test_unlabelled_items_are_never_drawn():
    labels = np.array([0, -1, 1, -1, 0, 1])
    assert set(few_shot_draw(labels, 2, 0).train) == {0, 2, 4, 5}


def test_a_draw_that_is_too_large_says_the_largest_one():
    labels = np.repeat([0, 1, 2], [30, 7, 12])
    with pytest.raises(ImpossibleSplit, match=r'10 labels .* "covid" has 7 .* most is 7'):
        few_shot_draw(labels, 10, 0, classes=("normal", "covid", "flu"))
    assert len(few_shot_draw(labels, 7, 0).train) == 21


def test_a_class_that_is_missing_from_the_pool_is_not_silently_dropped():
    with pytest.raises(ImpossibleSplit, match="class 1 has 0"):
        few_shot_draw(np.array([0, 0, 1, 1]), 1, 0, pool=np.array([0, 1]))


@pytest.mark.parametrize("labels", [np.eye(4, dtype=np.int8), np.linspace(0, 1, 6)])
def test_targets_without_one_class_each_are_refused_by_name(labels):
    for ask in (lambda: few_shot_draw(labels, 1, 0), lambda: folds(labels, None, 2)):
        with pytest.raises(Refusal, match="one class code an item"):
            ask()


# Splits and folds


def test_splits_are_stratified_and_keep_groups_whole(grouped):
    labels, groups, seed = grouped
    sides = split_groups(labels, groups, seed=seed)
    assert all(len(set(sides[groups == group])) == 1 for group in set(groups))
    for side, share in {"train": 0.6, "valid": 0.2, "test": 0.2}.items():
        held = np.bincount(labels[sides == side], minlength=3)
        assert (held > 0).all() and abs(held.sum() / 240 - share) < 0.04
        assert abs(held / np.bincount(labels) - share).max() < 0.12
    assert (sides == split_groups(labels, groups, seed=seed)).all()


def test_a_split_without_groups_meets_its_shares_closely():
    labels = np.repeat([0, 1], [80, 20])
    sides = split_groups(labels, shares={"train": 0.5, "test": 0.5}, seed=3)
    assert np.bincount(labels[sides == "train"]).tolist() == [40, 10]


def test_a_test_side_is_the_declared_one_or_the_one_that_nothing_is_chosen_on(grouped):
    labels, groups, _ = grouped
    pictures = np.zeros((len(labels), 4, 4), np.uint8)
    sides = split_groups(labels, groups)
    declared = read_arrays(pictures, labels, groups, sides)
    assert with_test_side(declared) is declared
    two = with_test_side(read_arrays(pictures, labels, groups, np.where(sides == "test", "valid", sides)))
    assert np.array_equal(two.splits, np.where(sides == "train", "train", "test"))
    none = with_test_side(read_arrays(pictures, labels, groups))
    assert {*none.groups[none.where("train")]}.isdisjoint(none.groups[none.where("test")])


def test_findings_numbers_and_unlabelled_items_can_be_split():
    rng = np.random.default_rng(0)
    findings = (rng.random((100, 4)) < 0.2).astype(np.int8)
    sides = split_groups(findings)
    assert all((findings[sides == side].sum(0) > 0).all() for side in ("train", "valid", "test"))
    assert Counter(split_groups(rng.random(100)).tolist()) == {"train": 60, "valid": 20, "test": 20}
    few = np.array([0] * 10 + [1] * 10 + [-1])
    assert set(split_groups(few)) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("labels", "groups", "says"),
    [
        ([0] * 9 + [1] * 2, None, '"ill" has 2. Possible here: 2 sides'),
        ([0] * 6 + [1] * 6, list("uvwxyz") + ["a"] * 3 + ["b"] * 3, '"ill" has 2. Possible here: 2 sides'),
        ([0, 1], [7, 7], "Possible here: 1 side"),
        ([], None, "Possible here: 0 sides"),
    ],
)
def test_an_impossible_split_says_what_is_possible(labels, groups, says):
    with pytest.raises(ImpossibleSplit) as refusal:
        split_groups(
            np.array(labels, int), None if groups is None else np.array(groups), classes=("well", "ill")
        )
    assert says in str(refusal.value)


def test_what_was_said_to_be_possible_is_possible():
    labels = np.array([0] * 9 + [1] * 2)
    sides = split_groups(labels, shares={"train": 0.5, "test": 0.5})
    assert all(len(set(labels[sides == side])) == 2 for side in ("train", "test"))


def test_folds_hold_every_item_out_once_and_every_class_in_every_fold(grouped):
    labels, groups, seed = grouped
    for given in (None, groups):
        parts = folds(labels, given, 4, seed)
        assert sorted(np.concatenate([out for _, out in parts])) == list(range(240))
        for fitted, out in parts:
            assert set(labels[fitted]) == set(labels[out]) == {0, 1, 2}
            assert given is None or not set(groups[fitted]) & set(groups[out])


@pytest.mark.parametrize("seed", range(40))
def test_folds_of_few_groups_lose_no_class(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 12, 26)
    labels = (rng.random(26) < 0.3).astype(int)
    most = min(len(set(groups[labels == code])) for code in (0, 1))
    with pytest.raises(ImpossibleSplit, match=f"The most is {most if most > 1 else 'none'}"):
        folds(labels, groups, most + 1, seed)
    if most >= 3:
        assert all(len(set(labels[out])) == 2 for _, out in folds(labels, groups, 3, seed))


# The domain


def test_a_part_of_a_domain_fetches_nothing():
    class Untouchable(Pictures):
        def __getitem__(self, i):
            raise AssertionError("an item was fetched")

    whole = domain_of(Untouchable([film(0)] * 4), list("abab"), "wxyz", ["train", "test", "train", "test"])
    part = whole.take([3, 1]).take([1])
    assert (part.names[0], part.groups[0], part.splits[0], part.counts()) == (
        "1.png",
        "x",
        "test",
        {"a": 0, "b": 1},
    )


def test_the_digest_follows_content_labels_and_order_but_not_names():
    domain = domain_of(ArrayItems(np.arange(6.0).reshape(3, 2)), list("aba"))
    renamed = replace(domain, name="other", names=np.array(list("xyz")))
    assert domain.digest == renamed.digest == domain.take([0, 1, 2]).digest
    changed = np.arange(6.0).reshape(3, 2)
    changed[1, 1] += 1
    others = [
        domain.take([0, 2, 1]),
        replace(domain, labels=np.array([0, 1, 1])),
        replace(domain, items=ArrayItems(changed)),
    ]
    assert len({domain.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": np.array([0, 1, 2])}, "2.png has the label 2"),
        ({"labels": np.array([0, 1, -2])}, "2.png has the label -2"),
        ({"labels": np.array([0.5, np.nan, 1])}, "1.png has the label nan"),
        ({"labels": np.zeros((3, 5), np.int8)}, "5 label columns and 2 class names"),
        ({"groups": np.array(["x"])}, "3 items and 1 groups"),
        ({"splits": np.array(["train", "holdout", "test"])}, '"holdout"'),
    ],
)
def test_a_domain_that_contradicts_itself_is_refused(change, says):
    with pytest.raises(Refusal, match=says):
        replace(domain_of([film(i) for i in range(3)], list("aba")), **change)


# Readers


def test_labels_csv_wins_over_class_folders_and_its_columns_are_obeyed(folder):
    table = "Image,Finding,Patient_ID,Split\nill/a.png,healthy,p1,train\nill/b.png,sick,p1,val\nwell/c.png,sick,,test\n"
    domain = read_folder(
        folder(
            {
                "ill/a.png": None,
                "ill/b.png": None,
                "well/c.png": None,
                "well/d.png": None,
                "labels.csv": table,
            }
        )
    )
    assert domain.classes == ("healthy", "sick") and domain.labels.tolist() == [0, 1, 1]
    assert domain.groups.tolist() == ["p1", "p1", "well/c.png"] and domain.splits.tolist() == [
        "train",
        "valid",
        "test",
    ]
    assert domain.items[2].size == (64, 64)


def test_class_folders_with_sides_nesting_and_files_that_are_no_pictures(folder):
    domain = read_images(
        folder({
            "train/cat/deep/a.PNG": None, "train/dog/b.jpg": None, "val/cat/c.bmp": None, "val/fox/notes.txt": "x",
            "train/cat/._a.png": "resource fork", "__MACOSX/cat/a.png": "junk", "README.md": "text",
        })
    )  # fmt: skip
    assert domain.counts() == {"cat": 2, "dog": 1, "fox": 0} and domain.splits.tolist() == [
        "train",
        "train",
        "valid",
    ]


def test_a_reader_decodes_nothing(folder):
    domain = read_folder(folder({"a/x.png": "not a picture", "b/y.dcm": "neither"}))
    assert domain.counts() == {"a": 1, "b": 1}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_write_them(folder, separator):
    rows = [["file", "label"], ["a.png", "1"], ["b.png", "10"], ["c.png", "2"]]
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows) + "\r\n\r\n"
    where = folder({"a.png": None, "b.png": None, "c.png": None, "list.csv": text})
    domain = read_images(where / "list.csv")
    assert domain.classes == ("1", "2", "10") and domain.labels.tolist() == [0, 2, 1]


def test_a_dataframe_with_columns_of_its_own_names(folder):
    where = folder({"a.png": None, "b.png": None})
    frame = pd.DataFrame({"scan": ["a.png", "b.png"], "grade": [1.0, 0.0], "who": [7, 8]}, index=[40, 50])
    domain = read_table(frame, where, file="scan", label="grade", group="who")
    assert (
        domain.classes == ("0", "1")
        and domain.labels.tolist() == [1, 0]
        and domain.groups.tolist() == ["7", "8"]
    )
    with pytest.raises(Refusal, match='no column "grad".*Did you mean "grade"'):
        read_table(frame, where, file="scan", label="grad")


def test_several_findings_and_numbers(folder):
    where = folder({"a.png": None, "b.png": None})
    frame = pd.DataFrame(
        {"file": ["a.png", "b.png"], "mass": [1, 0], "nodule": ["1", "1"], "age": ["4.5", "61"]}
    )
    findings = read_table(frame, where, label=["mass", "nodule"])
    assert findings.target == "multilabel" and findings.counts() == {"mass": 1, "nodule": 2}
    ages = read_table(frame, where, label="age", target="regression")
    assert ages.target == "regression" and ages.labels.tolist() == [4.5, 61.0]
    with pytest.raises(Refusal, match="row 1: not 0 or 1 in mass"):
        read_table(frame.assign(mass=[1, 2]), where, label=["mass"])
    with pytest.raises(Refusal, match="is not of numbers"):
        read_table(frame.assign(age=["4.5", "old"]), where, label="age", target="regression")


def test_numbers_are_not_squeezed_into_classes(folder):
    where = folder({f"{i}.png": None for i in range(4)})
    frame = pd.DataFrame({"file": [f"{i}.png" for i in range(4)], "label": [0.1, 0.7, 1.4, 2.9]})
    with pytest.raises(Refusal, match='target="regression"'):
        read_table(frame, where)


def test_medmnist_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    one, several = tmp_path / "one.npz", tmp_path / "several.npz"
    sides = {"train_images": pixels[:3], "val_images": pixels[3:4], "test_images": pixels[4:]}
    np.savez(one, **sides, train_labels=[[0], [10], [2]], val_labels=[[2]], test_labels=[[0]])
    domain = read_images(one)
    assert domain.classes == ("0", "2", "10") and domain.splits.tolist() == ["train"] * 3 + ["valid", "test"]
    assert (np.asarray(domain.items[4]) == pixels[4]).all()
    np.savez(
        several, **sides, train_labels=np.eye(3), val_labels=np.zeros((1, 3)), test_labels=np.ones((1, 3))
    )
    assert read_images(several).target == "multilabel"


def test_bad_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(Refusal, match="it has pictures"):
        read_npz(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "code.npz", train_images=np.array([print], dtype=object), train_labels=[0])
    for name in ("cut.npz", "text.npz", "code.npz"):
        with pytest.raises(Refusal, match="not a readable .npz"):
            read_npz(tmp_path / name)


def test_arrays():
    pixels = np.random.default_rng(0).random((4, 8, 8))
    domain = read_arrays(pixels, [2, 10, 2, 10], groups=list("aabb"), splits=["train", "train", "val", ""])
    assert domain.classes == ("2", "10") and domain.splits.tolist() == ["train", "train", "valid", ""]
    assert abs(np.asarray(domain.items[1]) / 255 - pixels[1]).max() < 0.003
    for wrong, says in [
        (pixels * 300, "floats from 0 to 1"),
        (pixels.astype(np.uint16), "uint16"),
        (pixels[0], "shape"),
    ]:
        with pytest.raises(Refusal, match=says):
            ImageArrays(wrong)
    with pytest.raises(Refusal, match="row 1"):
        read_arrays(pixels, [2, None, 2, 10])


# Bad tables and folders


TABLES = {
    "a missing label": ("file,label\na.png,x\nb.png,\na.png,NaN\n", "lines 3, 4: no label.*unlabelled=True"),
    "a line after a blank one": ("file,label\n\na.png,x\nb.png,\n", "line 4: no label"),
    "a missing file name": ("file,label\na.png,x\n,y\n", "line 3: no file name"),
    "a path upwards": ("file,label\na.png,x\nb/../../b.png,y\n", "line 3: .*leaves the folder"),
    "an absolute path": ("file,label\n/etc/passwd,x\n", "line 2: /etc/passwd leaves the folder"),
    "a path upwards of another system": ("file,label\n..\\b.png,x\n", "line 2: .*leaves the folder"),
    "a drive": ("file,label\nC:\\b.png,x\n", "line 2: .*leaves the folder"),
    "an unknown side": (
        "file,label,split\na.png,x,train\nb.png,y,holdout\n",
        'line 3: unknown split "holdout"',
    ),
    "no label column": ("file,colour\na.png,x\n", "no column for the label; it has file, colour"),
    "no file column": ("name,label\na.png,x\n", "no column for the file"),
    "no rows": ("file,label\n", "has no rows"),
    "nothing at all": ("", "not a readable CSV"),
    "rows that are too long": ("file,label\na.png,x\nb.png,y,z,z\n", "not a readable CSV.*line 3"),
    "files that are elsewhere": ("file,label\nq/a.png,x\nq/b.png,y\n", "none of its 2 files"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_refused_with_its_row(folder, case):
    text, says = TABLES[case]
    where = folder({"a.png": None, "b.png": None, "labels.csv": text})
    with pytest.raises(Refusal, match=says) as refusal:
        read_folder(where)
    assert "labels.csv" in str(refusal.value)


def test_a_table_in_another_encoding_says_how_to_save_it(folder):
    where = folder({"a.png": None})
    (where / "labels.csv").write_bytes("file,label\na.png,Lungenentzündung\n".encode("latin-1"))
    with pytest.raises(Refusal, match="UTF-8"):
        read_folder(where)


def test_unlabelled_rows_are_kept_when_asked_for(folder):
    where = folder({"a.png": None, "b.png": None, "labels.csv": "file,label\na.png,x\nb.png,\n"})
    assert read_folder(where, unlabelled=True).labels.tolist() == [0, -1]
    (where / "labels.csv").unlink()
    assert read_folder(where, unlabelled=True).labels.tolist() == [-1, -1]


def test_bad_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match=r"empty: no images here \(.png"):
        read_images(tmp_path / "empty")
    for wrong in (tmp_path / "nowhere", tmp_path / "nowhere.csv", tmp_path / "nowhere.npz"):
        with pytest.raises(Refusal, match="there is no such"):
            read_images(wrong)
    with pytest.raises(Refusal, match="loose.png lies in no class folder"):
        read_folder(folder({"loose.png": None, "a/x.png": None}))
    with pytest.raises(Refusal, match='no labels.csv, so there is no column "who"'):
        read_folder(folder({}) if (tmp_path / "films").is_dir() else tmp_path, group="who")


# The gate: what labels and sides tell


def test_clean_data_pass_untouched():
    domain = domain_of(
        [film(i) for i in range(8)], list("abababab"), "ssttuuvv", ["train"] * 4 + ["test"] * 4
    )
    report = check(domain)
    assert not report.findings and report.enforce() is report.domain and "nothing found" in str(report)


def test_classes_typed_in_several_ways_are_merged_by_the_repair():
    labels = (
        ["VIRAL PNEUMONIA"] * 4 + ["Viral Pneumonia", "VIRAL PNEUMONIA ", "viral-pneumonia"] + ["normal"] * 5
    )
    report = check(domain_of([film(i) for i in range(12)], labels))
    one = the(report, "label-typo")
    assert one.names == ("4.png", "5.png", "6.png") and '"VIRAL PNEUMONIA "' in one.message
    with pytest.raises(Refusal, match="label-typo"):
        report.enforce()
    assert report.enforce(repair=True).counts() == {"VIRAL PNEUMONIA": 7, "normal": 5}
    assert report.enforce(allow=["label-typo"], repair=True).counts()["Viral Pneumonia"] == 1


def test_a_slip_of_the_pen_is_pointed_out_but_numbered_classes_are_not():
    counts = {"stage 1": 30, "stage 2": 2, "stage -1": 2, "normal": 30, "nromal": 2}
    labels = [name for name, count in counts.items() for _ in range(count)]
    report = check(domain_of(ArrayItems(np.arange(66)), labels))
    one = the(report, "label-typo")
    assert (one.severity, one.names) == ("warns", ("64.png", "65.png")) and '"normal" (30)' in one.message
    assert len(report.enforce().classes) == 5


@pytest.mark.parametrize(
    ("labels", "groups", "splits", "kind", "says"),
    [
        ("aaaaaa", None, None, "one-class", 'all labels are "a"'),
        ("aaaaab", None, None, "too-few", '"b" has 1 item and needs 2'),
        ("aaaabb", "uvwxyy", None, "too-few", '"b" comes from 1 group'),
        ("aabbaa", None, ["train"] * 4 + ["test"] * 2, "too-few", '"b" has no item on the side test'),
    ],
)
def test_classes_that_cannot_be_learnt_and_tested_stop_the_run(labels, groups, splits, kind, says):
    report = check(domain_of([film(i) for i in range(6)], list(labels), groups, splits))
    assert kinds(report) == [kind] and says in the(report, kind).message and the(report, kind).repair == ""
    with pytest.raises(Refusal) as refusal:
        report.enforce(repair=True)
    assert f'allow=["{kind}"]' in str(refusal.value)
    assert len(report.enforce(allow=[kind])) == 6


def test_an_empty_class_folder_is_found(folder):
    where = folder({"a/1.png": None, "a/2.png": None, "b/3.png": None, "b/4.png": None})
    (where / "c").mkdir()
    assert '"c" has 0 items' in the(check(read_folder(where)), "too-few").message


def test_unlabelled_items_are_only_pointed_out():
    report = check(domain_of([film(i) for i in range(5)], ["a", "b", "", "a", "b"]))
    assert kinds(report) == ["unlabelled"] and the(report, "unlabelled").names == ("2.png",)
    assert len(report.enforce()) == 5


def test_a_kind_that_does_not_exist_cannot_be_allowed():
    report = check(domain_of([film(0), film(1)], ["a", "a"]))
    with pytest.raises(Refusal, match='Did you mean "one-class"'):
        report.enforce(allow=["one-clas"])


# The gate: leaks


def test_torn_groups_are_put_on_one_side():
    splits = ["train", "train", "train", "test", "train", "test", "test", "train"]
    domain = domain_of([film(i) for i in range(8)], list("abababab"), "sssstuuv", splits)
    report = check(domain)
    assert the(report, "group-across-splits").names == ("0.png", "1.png", "2.png", "3.png")
    with pytest.raises(Refusal, match=r'"group-across-splits"') as refusal:
        report.enforce()
    assert "3.png" in str(refusal.value) and "repair=True" in str(refusal.value)
    mended = report.enforce(repair=True)
    assert (
        report.repaired_splits.tolist() == mended.splits.tolist() == ["train"] * 5 + ["test", "test", "train"]
    )
    assert not check(mended).findings
    assert report.enforce(allow=["group-across-splits"]).splits.tolist() == splits


def test_the_repair_of_torn_groups_empties_no_side():
    splits = ["train", "train", "test", "train", "train", "test", "train", "train"]
    domain = domain_of([film(i) for i in range(8)], list("aaabbbab"), "xxxyyyzw", splits)
    mended = check(domain).enforce(repair=True)
    for side in ("train", "test"):
        assert set(mended.labels[mended.splits == side]) == {0, 1}
    assert all(len(set(mended.splits[mended.groups == group])) == 1 for group in "xyzw")


def test_groups_that_cannot_be_whole_are_not_repaired_by_guess():
    domain = domain_of([film(i) for i in range(4)], list("abab"), "xxxx", ["train", "train", "test", "test"])
    report = check(domain)
    assert the(report, "group-across-splits").repair == ""
    with pytest.raises(Refusal, match="group-across-splits"):
        report.enforce(repair=True)


def test_exact_copies_are_kept_once():
    pictures = [film(0), film(1), film(2), film(3), film(0), film(0)]
    report = check(domain_of(pictures, ["a", "b", "a", "b", "a", ""]))
    assert kinds(report) == ["exact-duplicate"] and the(report, "exact-duplicate").names == ("4.png", "5.png")
    assert report.enforce().names.tolist() == ["0.png", "1.png", "2.png", "3.png"]


def test_copies_across_sides_stop_the_run_and_the_test_side_keeps_its_own():
    pictures = [film(0), film(1), film(2), film(3), film(0), film(5), saved_again(film(1)), film(6)]
    report = check(domain_of(pictures, list("abababba"), splits=["train"] * 4 + ["test"] * 4))
    assert the(report, "duplicate-across-splits").names == ("0.png", "4.png")
    assert the(report, "near-duplicate-across-splits").names == ("1.png", "6.png")
    with pytest.raises(Refusal, match="duplicate-across-splits"):
        report.enforce()
    mended = report.enforce(repair=True)
    assert mended.names.tolist() == ["2.png", "3.png", "4.png", "5.png", "6.png", "7.png"]
    assert report.repaired_splits.tolist() == ["", "", "train", "train"] + ["test"] * 4
    with pytest.raises(Refusal, match="near-duplicate-across-splits"):
        report.enforce(allow=["duplicate-across-splits"])
    both = ["duplicate-across-splits", "near-duplicate-across-splits"]
    assert len(report.enforce(allow=both)) == 8 and len(report.enforce(allow=both[:1], repair=True)) == 7


def test_a_repair_that_would_empty_a_class_is_refused():
    pictures = [film(0), film(1), film(0), film(1), film(4), film(5)]
    report = check(
        domain_of(pictures, list("ababaa"), splits=["train", "train", "test", "test", "train", "test"])
    )
    with pytest.raises(Refusal, match="would leave no b in train"):
        report.enforce(repair=True)


def test_copies_with_different_labels_stop_the_run():
    report = check(domain_of([film(0), film(1), film(2), film(3), film(0)], list("ababb")))
    assert the(report, "conflicting-labels").names == ("0.png", "4.png")
    with pytest.raises(Refusal, match="conflicting-labels"):
        report.enforce()


def test_conflicts_by_a_typo_alone_are_no_conflicts():
    report = check(domain_of([film(0), film(1), film(2), film(0)], ["Ill", "well", "well", "ill"]))
    assert "conflicting-labels" not in kinds(report) and "exact-duplicate" in kinds(report)


def test_near_copies_share_a_group_where_no_side_was_declared():
    pictures = [film(0), film(1), film(2), film(3), saved_again(film(0))]
    for groups in (None, "vwxyz"):
        report = check(domain_of(pictures, list("ababa"), groups))
        own = report.domain.groups
        assert own[0] == own[4] and len(set(own)) == 4 and "near-duplicate" in kinds(report)
        assert len(report.enforce()) == 5 and len(report.enforce(repair=True)) == 4


@pytest.mark.parametrize("seed", range(12))
def test_what_was_repaired_passes(seed):
    "Random mixtures of torn groups, copies and typos: the repaired domain has nothing left that stops."
    rng = np.random.default_rng(seed)
    source = np.concatenate([np.arange(24), rng.choice(24, 4, replace=False)])
    pictures = [film(i) for i in range(24)] + [
        saved_again(film(i)) if i % 2 else film(i) for i in source[24:]
    ]
    labels = np.where(source % 2, "ill", "well").astype(object)
    labels[rng.choice(24, 2, replace=False)] = "Ill"
    labels = np.where((labels == "Ill") & (source % 2 == 0), "Well", labels)
    groups = (source // 2)[: len(source)] + np.where(np.arange(len(source)) >= 24, 100, 0)
    splits = rng.choice(["train", "train", "valid", "test"], len(source))
    report = check(domain_of(pictures, labels.tolist(), groups.astype(str), splits))
    try:
        mended = report.enforce(repair=True)
    except Refusal as refusal:
        assert "would leave no" in str(refusal) or "too-few" in str(refusal)
        return
    after = check(mended)
    assert not [one for one in after.findings if one.severity == "stops"]
    assert len(set(mended.classes)) == 2 and {"train", "test"} <= set(mended.splits)


def test_every_finding_names_a_known_kind_and_is_json():
    import json
    from dataclasses import asdict

    pictures = [film(0), film(1), film(0), saved_again(film(1))]
    report = check(domain_of(pictures, list("abaA"), "xxyy", ["train", "train", "test", "test"]))
    assert len(report.findings) >= 3 and {one.kind for one in report.findings} <= set(KINDS)
    assert json.loads(json.dumps([asdict(one) for one in report.findings]))


# The gate: how it works


def test_pictures_are_let_go_as_soon_as_they_were_seen():
    alive, most, lock = Counter(), [0], threading.RLock()

    def gone():
        with lock:
            alive["pictures"] -= 1

    class Fresh(Pictures):
        def __getitem__(self, i):
            picture = film(i, 64)
            with lock:
                weakref.finalize(picture, gone)
                alive["pictures"] += 1
                most[0] = max(most[0], alive["pictures"])
            return picture

    told = []
    check(domain_of(Fresh([None] * 120), list("ab") * 60), progress=lambda done, of: told.append((done, of)))
    assert most[0] <= 12
    assert told == [(n, 120) for n in range(1, 121)]


def test_each_item_is_decoded_once():
    seen = Counter()

    class Counted(Pictures):
        def __getitem__(self, i):
            seen[i] += 1
            return self.pictures[i]

    check(domain_of(Counted([film(i) for i in range(6)]), list("ababab"), splits=["train", "test"] * 3))
    assert set(seen.values()) == {1}


def test_rows_that_are_no_pictures_pass_the_same_gate():
    rows = ArrayItems(np.array([[0.0], [1.0], [2.0], [0.0]]))
    report = check(domain_of(rows, list("abba"), splits=["train", "train", "test", "test"]))
    assert the(report, "duplicate-across-splits").names == ("0.png", "3.png")


def test_findings_and_numbers_as_targets():
    items = Pictures([film(0), film(1), film(2), film(0)])
    several = Domain(
        "x",
        items,
        np.array([[1, 0], [1, 1], [0, 1], [0, 1]], np.int8),
        ("m", "n"),
        None,
        None,
        np.array(list("pqrs")),
    )
    assert "conflicting-labels" in kinds(check(several))
    numbers = Domain("x", items, np.array([1.0, 2, 3, 1]), (), None, None, np.array(list("pqrs")))
    assert kinds(check(numbers)) == ["exact-duplicate"]


# Augmentations


def test_an_augmentation_that_destroys_what_a_task_needs_is_refused_and_both_are_named():
    with pytest.raises(Refusal, match='"horizontal_flip" may destroy laterality'):
        Augmentations(("small_rotation", "horizontal_flip"), needs={"laterality"})
    with pytest.raises(Refusal, match='Did you mean "horizontal_flip"'):
        Augmentations(("horizontal_flop",))
    with pytest.raises(Refusal, match='Did you mean "laterality"'):
        Augmentations(("noise",), needs={"lateralty"})


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_views_are_seeded_changed_and_of_the_same_kind(name, mode):
    image = film(3).crop((0, 0, 100, 128)).convert(mode)
    before = image.tobytes()
    views = [Augmentations((name,)).view(image, seed) for seed in range(6)]
    again = Augmentations((name,)).view(image, 4)
    assert again.tobytes() == views[4].tobytes() and len({view.tobytes() for view in views}) > 1
    assert image.tobytes() == before and all(view.mode == mode for view in views)
    assert all(sorted(view.size) == [100, 128] for view in views)


@pytest.mark.parametrize("need", PROPERTIES)
def test_what_is_allowed_can_be_made(need):
    assert Augmentations(allowed({need}), frozenset({need})).names
    assert any(need in one.destroys for one in AUGMENTATIONS.values())


# Real films


@pytest.mark.slow
def test_two_hospitals_are_read_and_pass_the_gate(data_dir):
    children, adults = (
        read_images(data_dir / name) for name in ("lung_kermany_pediatric", "lung_nih_adult_a")
    )
    assert (len(children), len(adults)) == (1200, 523)
    assert children.counts() == {"NORMAL": 600, "PNEUMONIA": 600}
    for domain in (children, adults):
        report = check(domain)
        assert report.findings == () and len(report.enforce()) == len(domain)
        assert set(domain.splits) == {"train", "valid", "test"}
        sides = [set(domain.groups[domain.where(side)]) for side in ("train", "valid", "test")]
        assert sum(map(len, sides)) == len(set().union(*sides))
    both = [set(adults.labels[adults.groups == patient]) == {0, 1} for patient in set(adults.groups)]
    assert sum(both) == 10  # in this half of the set; their films disagree, which is no error


@pytest.mark.slow
def test_copies_of_real_films_are_found_and_no_others(data_dir):
    domain = read_images(data_dir / "lung_kermany_pediatric")
    films = [domain.items[i] for i in range(0, 1200, 4)]
    changes = (
        lambda one: one.crop((5, 3, 220, 217)),
        lambda one: ImageEnhance.Contrast(one.resize((150, 150))).enhance(0.8),
        saved_again,
    )
    copies = [changes[i % 3](films[i]) for i in range(60)]
    found = near_duplicates([sketch(one) for one in [*films, *copies]])
    right = {(i, len(films) + i) for i in range(60)}
    assert set(found) <= right and len(found) >= 58


def test_a_one_class_hospital_is_stopped_by_name(data_dir):
    report = check(read_images(data_dir / "lung_hannover_covid"), near_duplicates=False)
    assert kinds(report) == ["one-class"] and len(report.enforce(allow=["one-class"])) == 243


def test_draws_from_real_films_respect_patients(data_dir):
    adults = read_images(data_dir / "lung_nih_adult_a")
    pool = adults.where("train")
    draw = few_shot_draw(adults.labels, 20, 0, adults.groups, pool, adults.classes)
    for code in (0, 1):
        assert len(set(adults.groups[draw.train[adults.labels[draw.train] == code]])) == 20
    with pytest.raises(ImpossibleSplit, match="The most is"):
        few_shot_draw(adults.labels, 500, 0, adults.groups, pool, adults.classes)
