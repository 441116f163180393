"""The data view without a browser: the journal and its replay, edits, the gate's answers, pages that decode nothing."""

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tljupyter.domains import images
from tljupyter.domains.domain import Domain
from tljupyter.domains.gate import check
from tljupyter.domains.images import ImageFiles
from tljupyter.domains.journal import Change, Edit, Edited, Journal, apply_journal, journal_of
from tljupyter.domains.readers import read_arrays, read_folder
from tljupyter.refusals import Refusal
from tljupyter.widgets.data_view import DataView
from tljupyter.widgets.thumbnails import SIDE

HOSTILE = "ill<img src=x onerror=alert(1)>&\"'"


def film(seed: int, side: int = 96) -> Image.Image:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 3)
    return Image.fromarray(((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8))


@pytest.fixture
def pets(tmp_path) -> Path:
    "Five cats and five dogs."
    for number in range(10):
        folder = tmp_path / "pets" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        film(number).save(folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def wards(tmp_path) -> Path:
    "Films of patients who stand on both sides, one film saved on both."
    folder = tmp_path / "wards"
    folder.mkdir()
    rows = ["file,label,patient,split"]
    for number in range(24):
        film(number).save(folder / f"{number}.png")
        side = "test" if number % 5 == 4 else "train"
        rows.append(f"{number}.png,{('normal', 'ill')[number % 2]},p{number // 3},{side}")
    film(9).save(folder / "again.bmp")
    rows.append(f"again.bmp,ill,p3,{'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def number_of(view: DataView, name: str) -> int:
    return int(np.flatnonzero(view.source.names == name)[0])


# Journal


def test_every_action_is_a_line_on_the_disk_before_it_returns(pets):
    view = DataView(pets)
    path = pets / "edits.jsonl"
    assert view.journal.path == path and not path.exists()
    for act, kind in (
        (lambda: view.relabel(0, "dog"), "relabel"),
        (lambda: view.drop(1), "drop"),
        (lambda: view.unsure(2), "unsure"),
        (lambda: view.allow("near-duplicate"), "allow"),
        (lambda: view.undo(), "undo"),
    ):
        act()
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[-1]["edit"] == kind and rows[-1]["at"].endswith("+00:00")
    item = rows[1]["items"][0]
    assert item == {
        "name": "cat/0.png",
        "digest": view.source.items.digest(0),
        "old": "cat",
        "new": "dog",
    }


def test_a_fresh_read_and_the_journal_give_the_same_domain(pets):
    view = DataView(pets)
    view.relabel([0, 1], "dog")
    view.drop(5)
    view.unsure(6)
    view.relabel(7, "cat")
    view.undo()
    domain, notes = apply_journal(read_folder(pets), journal_of(pets))
    assert notes == () and domain.digest == view.domain.digest
    assert domain.names.tolist() == view.domain.names.tolist() and len(domain) == 9
    assert domain.counts() == {"cat": 3, "dog": 5} and (domain.labels < 0).sum() == 1


def test_edits_survive_a_change_of_class_page_and_side(wards):
    "What loses edits elsewhere: choosing another category before they are written."
    view = DataView(wards, per_page=4)
    first = view.show(label="ill").page()[0].item
    view.relabel(first, "normal")
    view.show(label="normal", side="train").go(2)
    view.show(label="ill")
    assert first not in [row.item for row in view.page()]
    assert first in view.show(label="normal").listed
    assert view.row(first).was == "ill" and view.show(mark="relabelled").listed.tolist() == [first]
    assert DataView(wards).domain.digest == view.domain.digest


def test_undo_goes_back_step_by_step_also_on_another_day(pets):
    view, digests = DataView(pets), []
    for act in (
        lambda: view.relabel(0, "dog"),
        lambda: view.unsure(0),
        lambda: view.drop(0),
        lambda: view.relabel(0, "cat"),
    ):
        digests.append(view.domain.digest)
        act()
    assert view.row(0).mark == "" and len(view.domain) == 10
    tomorrow = DataView(pets)
    for digest in reversed(digests):
        assert tomorrow.undo() is not None and tomorrow.domain.digest == digest
    assert tomorrow.undo() is None and tomorrow.domain.digest == read_folder(pets).digest


def test_items_gone_changed_or_of_an_unknown_class_are_noted_and_the_lines_stay(pets):
    view = DataView(pets)
    view.relabel([0, 1, 2], "dog")
    view.relabel(9, "cat")
    before = view.journal.path.read_text()
    (pets / "cat" / "0.png").unlink()
    film(99).save(pets / "cat" / "2.png")
    fresh = read_folder(pets)
    domain, notes = apply_journal(fresh, view.journal.path)
    assert len(notes) == 2
    assert "cat/0.png: is not there any more" in notes[0] and "cat/2.png: has changed since" in notes[1]
    assert domain.counts() == {"cat": 4, "dog": 5}
    renamed = replace(fresh, classes=("cat", "wolf"))
    _, notes = apply_journal(renamed, view.journal.path)
    assert sum('there is no class "dog"' in note for note in notes) == 1
    assert sum("its label in the data is now wolf" in note for note in notes) == 1  # and the edit counts
    assert view.journal.path.read_text() == before


def test_a_half_written_line_is_passed_over_and_said(pets):
    view = DataView(pets)
    view.relabel(0, "dog")
    whole = view.journal.path.read_bytes()
    view.journal.path.write_bytes(whole + whole.splitlines()[-1][:40])
    domain, notes = apply_journal(read_folder(pets), view.journal.path)
    assert domain.counts() == {"cat": 4, "dog": 6} and "half-written" in notes[0]
    again = DataView(pets)
    again.drop(1)
    domain, notes = apply_journal(read_folder(pets), view.journal.path)
    assert len(domain) == 9 and len(notes) == 1 and "line 3" in notes[0]


def test_a_line_that_lacks_only_its_end_counts(pets):
    DataView(pets).relabel(0, "dog")
    path = journal_of(pets)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert apply_journal(read_folder(pets), path)[0].counts()["dog"] == 6
    view = DataView(pets)
    view.relabel(1, "dog")
    assert DataView(pets).domain.counts()["dog"] == view.domain.counts()["dog"] == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"journal": 9}', "version 9"),
        ('{"edit": "rotate", "id": "a", "at": "now"}', '"rotate" is no edit'),
        ('{"edit": "drop", "id": "a"}', "not a whole edit"),
        ('{"edit": "drop", "id": "a", "at": "now", "items": [{"nme": "x"}]}', "not a whole edit"),
        ("[1, 2]", "not a line of a journal"),
    ],
)
def test_what_is_no_journal_of_this_version_is_refused(tmp_path, line, words):
    path = tmp_path / "edits.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(Refusal, match="line 1"):
        Journal(path)
    with pytest.raises(Refusal) as refused:
        Journal(path)
    assert words in str(refused.value)


WRITER = """
import sys
from tljupyter.domains.journal import Change, Edit, Journal
journal = Journal(sys.argv[1])
for number in range(40):
    journal.add(Edit("drop", (Change(f"{sys.argv[2]} {number}", "0" * 32, "cat", None),)))
"""


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "edits.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    names = [edit.changes[0].name for edit in Journal(path).edits]
    assert sorted(names) == sorted(f"{name} {number}" for name in ("one", "two") for number in range(40))
    assert path.read_text().count('"journal"') == 1


def test_two_views_of_the_same_data_see_each_other(pets):
    mine, theirs = DataView(pets), DataView(pets)
    mine.relabel(0, "dog")
    theirs.drop(1)
    assert theirs.row(0).label == "dog"
    assert mine.refresh() == 1 and mine.domain.digest == theirs.domain.digest
    assert str(mine.undo()).startswith("drop") and theirs.refresh() == 1 and len(theirs.domain) == 10


FULL_DISK = """
import resource, sys
from pathlib import Path
from tljupyter.refusals import Refusal
from tljupyter.widgets.data_view import DataView
view = DataView(sys.argv[1])
view.relabel(0, "dog")
kept = view.journal.path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 30, resource.RLIM_INFINITY))
try:
    view.drop(1)
except Refusal as refused:
    print(refused)
assert view.journal.path.read_bytes() == kept and len(view.domain) == 10
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
view.drop(1)
assert len(view.domain) == 9 and not view.notes
"""


@pytest.mark.slow
def test_an_edit_that_the_disk_refuses_is_not_made(pets):
    "A limit on the size of files stands for the full disk: the line fits in part."
    told = subprocess.run([sys.executable, "-c", FULL_DISK, pets], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "edits.jsonl: the edit is not kept" in told.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != len(told.stdout)


def test_a_journal_where_none_can_be_is_refused(pets, tmp_path):
    view = DataView(pets, journal=tmp_path / "file" / "edits.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="the edit is not kept"):
        view.journal.add(view.edited.dropping([0]))
    with pytest.raises(Refusal, match="cannot be read"):
        view.relabel(0, "dog")
    assert view.domain.counts() == {"cat": 5, "dog": 5}
    with pytest.raises(Refusal, match="cannot be read"):
        DataView(pets, journal=tmp_path / "file" / "edits.jsonl")
    with pytest.raises(Refusal, match="no such journal"):
        apply_journal(read_folder(pets), tmp_path / "none.jsonl")


def test_items_of_one_name_are_told_apart(tmp_path):
    film(0).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,cat\na.png,dog\na.png,dog")
    view = DataView(tmp_path)
    view.relabel(1, "cat")
    view.drop(2)
    domain, notes = apply_journal(read_folder(tmp_path), journal_of(tmp_path))
    assert domain.labels.tolist() == [0, 0] and notes == ()


def test_names_that_no_text_encodes_are_kept(tmp_path):
    folder = tmp_path / "pets" / "cat"
    folder.mkdir(parents=True)
    os.mkdir(tmp_path / "pets" / "dog")
    stored = os.path.join(os.fsencode(folder), b"\xff\n.png")
    film(0).save(folder / "a.png")
    os.rename(folder / "a.png", stored)
    DataView(tmp_path / "pets").relabel(0, "dog")
    domain, notes = apply_journal(read_folder(tmp_path / "pets"), journal_of(tmp_path / "pets"))
    assert domain.counts() == {"cat": 0, "dog": 1} and notes == ()


def test_tables_and_domains_have_a_place_for_their_journal(wards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert journal_of(wards) == journal_of(wards / "labels.csv") == wards / "labels.edits.jsonl"
    assert DataView(read_folder(wards)).journal.path == wards / "labels.edits.jsonl"
    assert DataView(read_folder(wards).take([3, 4])).journal.path == wards / "labels.edits.jsonl"
    arrays = read_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], name="my arrays/2")
    assert DataView(arrays).journal.path == tmp_path / "my-arrays-2.edits.jsonl"


def test_only_classes_can_be_relabelled(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    plain = read_arrays(pictures, [0, 1, 0, 1])
    several = replace(plain, labels=np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.int8))
    numbers = replace(plain, labels=np.array([0.5, 1, 2, 3]), classes=())
    for kind, domain in (("multilabel", several), ("regression", numbers)):
        view = DataView(domain, journal=tmp_path / f"{kind}.jsonl")
        for act in (lambda v=view: v.relabel(0, "1"), lambda v=view: v.unsure(0)):
            with pytest.raises(Refusal, match=f"{kind} labels"):
                act()
        view.drop(0)
        assert len(view.domain) == 3 and "image" in view.static_html()
        view.check()
    assert DataView(several, tmp_path / "x").show(label="1").listed.tolist() == [0, 1]
    assert [row.label for row in DataView(several, tmp_path / "x").page()][:3] == [
        "1",
        "0 and 1",
        "no finding",
    ]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda view: view.relabel(0, "cats"), 'no class "cats"; it has cat, dog. Did you mean "cat"?'),
        (lambda view: view.drop(10), "items 0 to 9"),
        (lambda view: view.drop([]), "No item"),
        (lambda view: view.show(label="bird"), 'no class "bird"'),
        (lambda view: view.show(mark="droped"), 'Did you mean "dropped"?'),
        (lambda view: view.show(side="test"), 'no side "test"'),
        (lambda view: view.show(finding=0), "no finding 0"),
        (lambda view: view.repair("too-few"), "has not looked"),
        (lambda view: view.allow("leaks"), 'No finding is called "leaks"'),
        (lambda view: DataView(view.source, per_page=0), "per_page=0"),
        (lambda view: DataView(replace(view.source, modality="text")), "text items"),
    ],
)
def test_refusals_name_the_way_out(pets, act, words):
    view = DataView(pets)
    with pytest.raises(Refusal) as refused:
        act(view)
    assert words in str(refused.value)
    assert not view.journal.path.exists()


# The gate


def test_repairs_are_edits_and_the_gate_passes_afterwards(wards):
    view = DataView(wards)
    kinds = {row.kind for row in view.check() if row.severity == "stops"}
    assert kinds == {"group-across-splits", "duplicate-across-splits"} and view.passes is False
    for kind in kinds:
        view.repair(kind)
    assert view.passes and {row.answer for row in view.findings if row.severity == "stops"} == {"repaired"}
    with pytest.raises(Refusal, match="no repair"):
        view.repair("group-across-splits")
    fresh, notes = apply_journal(read_folder(wards), view.journal.path)
    assert not notes and not [one for one in check(fresh).findings if one.severity == "stops"]
    wanted = check(read_folder(wards)).enforce(repair=True)
    assert sorted(zip(fresh.names, fresh.splits, strict=True)) == sorted(
        zip(wanted.names, wanted.splits, strict=True)
    )
    view.undo()
    view.undo()
    assert view.domain.digest == view.source.digest and view.passes is False


def test_a_repair_finds_its_items_although_others_were_dropped(wards):
    "The gate numbers what it is given; items before the leak are gone by an edit and by the gate itself."
    (wards / "1.png").write_text("no picture")
    view = DataView(wards)
    view.drop([0, 7])
    view.check()
    view.repair("group-across-splits")
    view.repair("duplicate-across-splits")
    report = check(view.domain)
    assert not [one for one in report.findings if one.severity == "stops"]
    assert view.row(0).mark == "dropped" and "left out" in {
        view.row(n).mark for n in (9, number_of(view, "again.bmp"))
    }


def test_spelling_is_repaired_and_undone(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (12, 70, 70), dtype=np.uint8)
    domain = read_arrays(pictures, ["cat", "dog", "Cat ", "dog"] * 3)
    view = DataView(domain, tmp_path / "edits.jsonl")
    view.check()
    view.repair("label-typo")
    assert len(view.domain.counts()) == 2 and [row.key for row in view.counts()] == ["1", "2"]
    view.relabel(1, view.edited.classes[0])
    again, notes = apply_journal(domain, view.journal.path)
    assert not notes and again.digest == view.domain.digest
    view.undo()
    view.undo()
    assert view.domain.digest == domain.digest


def test_a_repair_that_would_take_a_class_away_is_refused(tmp_path):
    film(0).save(tmp_path / "a.png")
    for number in range(1, 8):
        film(number).save(tmp_path / f"{number}.png")
    film(0).save(tmp_path / "b.png")
    rows = ["file,label,split", "a.png,ill,test", "b.png,ill,train"]
    rows += [f"{number}.png,normal,{('train', 'test')[number % 2]}" for number in range(1, 8)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    view = DataView(tmp_path)
    view.check()
    with pytest.raises(Refusal, match="ill in train"):
        view.repair("duplicate-across-splits")
    assert not view.journal.path.exists() and view.passes is False


def test_findings_are_allowed_and_grow_old(wards):
    view = DataView(wards)
    view.check()
    for row in view.findings:
        if row.severity == "stops":
            view.allow(row.kind)
    assert view.passes and set(view.allowed) == {"group-across-splits", "duplicate-across-splits"}
    check(view.domain).enforce(allow=view.allowed)
    assert not view.stale
    view.relabel(0, "ill")
    assert view.stale and view.passes is None
    with pytest.raises(Refusal, match="Check again"):
        view.repair("group-across-splits")
    view.undo()
    assert not view.stale
    number = next(row.number for row in view.findings if row.kind == "duplicate-across-splits")
    assert {view.row(int(item)).name for item in view.show(finding=number).listed} == {"9.png", "again.bmp"}


def test_a_check_that_fails_says_why(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_text("nothing")
    view = DataView(tmp_path)
    with pytest.raises(Refusal, match="none of 2 items can be read"):
        view.check()
    assert view.thumbnails[0].content == b"" and "not an image" in view.thumbnails[0].fault
    with pytest.raises(Refusal, match="no edit"):
        DataView(replace(view.source, items=ImageFiles(tmp_path, ["cat/none.png", "cat/b.png"]))).drop(0)


# What is shown


def test_ten_thousand_images_open_without_decoding(tmp_path, monkeypatch):
    decoded: list[Path] = []
    real = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, *rest: decoded.append(path) or real(path, *rest))
    folder = tmp_path / "many"
    for label in ("round", "square"):
        (folder / label).mkdir(parents=True)
    content = tmp_path / "one.png"
    film(0).save(content)
    for number in range(10_000):
        os.link(content, folder / ("round", "square")[number % 2] / f"{number:05d}.png")
    view = DataView(folder)
    assert [row.items for row in view.counts()] == [5000, 5000] and "5,000 labels" in view.budget()
    assert view.pages == 209 and decoded == []
    rows = view.show(label="square").go(100)
    assert len(rows) == 48 and rows[0].name == "square/09601.png" and decoded == []
    [view.thumbnails[row.item] for row in [*rows, *rows]]
    assert len(decoded) == view.thumbnails.decoded == 48
    view.relabel(rows[0].item, "round")
    assert [row.items for row in view.counts()] == [5001, 4999] and len(decoded) == 48
    view.static_html()
    assert len(decoded) <= 48 + 12


def test_thumbnails_are_small_and_of_any_shape(tmp_path):
    wide = (np.random.default_rng(0).random((30, 4000, 3)) * 255).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    Image.new("L", (1, 1), 9).save(tmp_path / "a" / "dot.png")
    for row in DataView(tmp_path).page():
        small = DataView(tmp_path).thumbnails[row.item]
        with Image.open(__import__("io").BytesIO(small.content)) as picture:
            assert max(picture.size) <= SIDE and small.kind == f"image/{picture.format.lower()}"


def test_names_are_text_in_html(tmp_path):
    folder = tmp_path / "<b>data"
    for label in (HOSTILE.replace("/", ""), "normal"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            film(number + 9 * (label == "normal")).save(folder / label / f'"><script>{number}.png')
    view = DataView(folder)
    view.relabel(0, "normal")
    view.check()
    page = view.static_html()
    assert "<script" not in page and "onerror=alert(1)>" not in page and "<b>data" not in page
    assert "ill&lt;img src=x onerror=alert(1)&gt;" in page and "was ill&lt;img" in page


def test_the_budget_is_that_of_the_rarest_class_on_the_training_side(wards):
    view = DataView(wards)
    rows = {row.name: row for row in view.counts()}
    normal = (view.source.labels == view.source.classes.index("normal")) & (view.source.splits == "train")
    assert rows["normal"].to_draw == rows["normal"].sides["train"] == normal.sum()
    assert rows["ill"].groups == 8 and sum(row.items for row in rows.values()) == 25
    assert f"At most {min(row.to_draw for row in rows.values())} labels" in view.budget()
    view.unsure(number_of(view, "0.png"))
    assert view.counts()[-1].name == "" and view.counts()[-1].items == 1


def test_a_browser_gets_json_answers_and_the_bytes_it_asks_for(pets):
    "The live face without a browser: what would be sent is caught where it leaves for the kernel's channel."
    view = DataView(pets, per_page=4)
    face, sent, all_there = view.widget, [], threading.Event()

    def send(content, buffers=()):
        sent.append((content, buffers))
        if sum(len(c.get("thumbnails", ())) for c, _ in sent) == 4:
            all_there.set()

    face.send = send
    for part in view.parts():
        json.dumps(getattr(face, part), allow_nan=False)
    view._heard(face, {"do": "thumbnails", "items": [row["item"] for row in face.page["rows"]]}, [])
    assert all_there.wait(10)
    pictures = {
        one["item"]: content
        for told, buffers in sent
        for one, content in zip(told.get("thumbnails", ()), buffers, strict=True)
    }
    assert len(pictures) == 4 and all(content[:2] in (b"\xff\xd8", b"\x89P") for content in pictures.values())
    for number, (message, words) in enumerate(
        [
            ({"do": "relabel", "item": 0, "to": "dog"}, "cat/0.png: cat → dog. Kept in edits.jsonl."),
            ({"do": "relabel", "item": 0, "to": "wolf"}, 'no class "wolf"'),
            ({"do": "drop", "item": 99}, "items 0 to 9"),
            ({"do": "rotate", "item": 0}, "does not know how to rotate"),
            ({"do": "undo"}, "Undone: cat/0.png: cat → dog."),
            ({"do": "undo"}, "no edit to undo"),
            ({"do": "show", "label": "dog", "mark": "", "side": ""}, ""),
        ]
    ):
        view._heard(face, message | {"answer": f"me {number}"}, [])
        assert sent[-1][0]["answer"] == f"me {number}" and words in sent[-1][0]["text"]
    assert face.page["selection"]["label"] == "dog" and face.page["listed"] == 5
    assert face.counts["rows"][0]["items"] == 5 and face.about["edits"] == 0


def test_a_small_folder_is_checked_when_a_browser_opens_it(wards):
    view = DataView(wards)
    assert view.widget.gate["state"] == "not checked"
    view._heard(view.widget, {"do": "opened"}, [])
    assert view.gate.wait(20) and view.widget.gate["state"] == "done" and view.widget.progress == [25, 25]
    view._heard(view.widget, {"do": "repair", "kind": "group-across-splits"}, [])
    assert view.gate.wait(20)
    found = {row["kind"]: row["severity"] for row in view.widget.gate["findings"]}
    assert "stops" not in found.values()  # the copies are on one side now, too
    assert found["exact-duplicate"] == "left out" and view.widget.about["edits"] == 1


def test_edits_fit_any_domain_that_has_the_items(pets):
    "A journal of the whole folder, played on a part of it."
    DataView(pets).relabel([0, 9], "dog")
    whole: Domain = read_folder(pets)
    part, notes = apply_journal(whole.take([0, 1, 2]), journal_of(pets))
    assert part.counts() == {"cat": 2, "dog": 1} and len(notes) == 1 and "dog/9.png" in notes[0]
    edited = Edited(whole, [Edit("drop", (Change("cat/0.png", whole.items.digest(0), None, None),))])
    assert len(edited.domain) == 9 and "its label in the data is now cat" in edited.notes[0]
