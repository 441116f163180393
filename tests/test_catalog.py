"""Public data: fetched whole from a real server that misbehaves, checked, never written over; read into domains."""

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tljupyter.cli import main
from tljupyter.domains import catalog, fetching
from tljupyter.domains.catalog import BEARING_RECORDS, CATALOG, PublicFile, PublicSet, get_public, public_set
from tljupyter.domains.fetching import fetch, unpack
from tljupyter.domains.public import GERMAN_COLUMNS, READERS, read_public
from tljupyter.refusals import Refusal, UnreadableItem

CONTENT = np.random.default_rng(0).bytes(1_500_000)
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Publisher(ThreadingHTTPServer):
    "A publisher on this machine; `manner` says how it behaves, `asked` is what it was asked for."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.manner, self.asked = CONTENT, '"first"', "", []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str = "data.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Publisher

    def log_message(self, *_):
        pass

    def do_GET(self):
        mine, first = self.server, not self.server.asked
        mine.asked.append((self.path, self.headers.get("Range")))
        if mine.manner == "redirects" and self.path != "/moved":
            return self.answer(302, b"", Location="/moved")
        if mine.manner == "circle":
            return self.answer(302, b"", Location=self.path)
        if mine.manner.isdigit() or (mine.manner == "busy once" and first):
            return self.answer(int(mine.manner) if mine.manner.isdigit() else 503, b"no")
        if mine.manner == "hangs up" and first:
            return self.connection.shutdown(socket.SHUT_RDWR)
        content, begin = mine.content, 0
        same = self.headers.get("If-Range") in (None, mine.tag)
        if self.headers.get("Range") and same and mine.manner != "no ranges":
            begin = int(self.headers["Range"][6:-1])
            if begin >= len(content):
                return self.answer(416, b"")
        told = {"ETag": mine.tag} if mine.tag else {}
        if mine.manner == "squeezes":  # although it was asked not to
            return self.answer(200, gzip.compress(content), Content_Encoding="gzip", **told)
        if begin:
            told["Content-Range"] = f"bytes {begin + (mine.manner == 'wrong part')}-{len(content) - 1}/*"
        rest = content[begin:]
        cut = mine.manner in ("always cut", "claims more") or (
            first and mine.manner in ("cuts", "no ranges", "wrong part", "new edition")
        )
        length = len(rest) + (1000 if mine.manner == "claims more" else 0)
        length -= 1000 if mine.manner == "claims less" else 0
        sent = rest[: max(1, len(rest) // 2)] if cut and mine.manner != "claims more" else rest
        self.answer(206 if begin else 200, sent, length, **told)
        if mine.manner == "new edition" and first:
            mine.content, mine.tag = CONTENT[::-1], '"second"'

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side has read as much as was claimed
            for start in range(0, len(body), 100_000):
                self.wfile.write(body[start : start + 100_000])
                time.sleep(0.2 if self.server.manner == "drips" else 0)
        self.close_connection = True


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0.005)
    server = Publisher()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def goal(tmp_path):
    return tmp_path / "set" / "data.bin"


def left(goal: Path) -> set[str]:
    "What lies in the folder, locks aside."
    return {path.name for path in goal.parent.iterdir() if not path.name.endswith(".lock")}


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ---- one file


@pytest.mark.parametrize("digest", ["", SHA, MD5, MD5.upper().replace("MD5", "md5")])
@pytest.mark.parametrize(
    "manner", ["", "redirects", "busy once", "hangs up", "cuts", "no ranges", "wrong part", "squeezes"]
)
def test_a_file_comes_whole_whatever_the_line_does(publisher, goal, manner, digest):
    publisher.manner = manner
    assert fetch(publisher.url(), goal, digest) == SHA
    assert goal.read_bytes() == CONTENT and left(goal) == {"data.bin"}


def test_a_cut_line_goes_on_where_it_was_cut(publisher, goal):
    publisher.manner, seen = "cuts", []
    fetch(publisher.url(), goal, "", lambda here, total: seen.append((here, total)))
    (_, first), (_, second) = publisher.asked
    assert first is None and 750_000 - fetching.CHUNK < int(second[6:-1]) <= 750_000
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [here for here, _ in seen] == sorted(
        h for h, _ in seen
    )


def test_without_an_edition_it_begins_again(publisher, goal):
    publisher.manner, publisher.tag = "cuts", ""
    assert fetch(publisher.url(), goal) == SHA
    assert [part for _, part in publisher.asked] == [None, None]


def test_two_editions_are_never_mixed(publisher, goal):
    publisher.manner = "new edition"
    fetch(publisher.url(), goal)
    assert goal.read_bytes() == CONTENT[::-1]


def test_a_part_of_another_call_is_gone_on_with(publisher, goal, monkeypatch):
    publisher.manner = "always cut"
    monkeypatch.setattr(fetching, "TRIES", 1)
    with pytest.raises(Refusal, match=r"\d{3},\d{3} bytes are kept .* run the same command"):
        fetch(publisher.url(), goal)
    assert left(goal) == {".data.bin.part", ".data.bin.part.json"}
    here, publisher.manner = (goal.parent / ".data.bin.part").stat().st_size, ""
    assert fetch(publisher.url(), goal) == SHA and publisher.asked[-1][1] == f"bytes={here}-"
    assert left(goal) == {"data.bin"}


def test_a_spoilt_part_is_found_out_and_fetched_again(publisher, goal):
    goal.parent.mkdir()
    (goal.parent / ".data.bin.part").write_bytes(b"x" * 1000)
    (goal.parent / ".data.bin.part.json").write_text(
        json.dumps({"url": publisher.url(), "edition": '"first"'})
    )
    assert fetch(publisher.url(), goal, SHA) == SHA
    assert [part for _, part in publisher.asked] == ["bytes=1000-", None]


@pytest.mark.parametrize("note", ["not JSON", "[]", '{"url": "http://other/", "edition": "\\"first\\""}'])
def test_a_part_of_unknown_origin_is_not_used(publisher, goal, note):
    goal.parent.mkdir()
    (goal.parent / ".data.bin.part").write_bytes(b"x" * 1000)
    (goal.parent / ".data.bin.part.json").write_text(note)
    assert fetch(publisher.url(), goal) == SHA and publisher.asked == [("/data.bin", None)]


@pytest.mark.parametrize("status", [404, 403, 410, 500, 503, 429])
def test_an_error_is_an_answer_and_leaves_no_file(publisher, goal, status):
    publisher.manner = str(status)
    with pytest.raises(Refusal, match=str(status)):
        fetch(publisher.url(), goal)
    assert not goal.exists() and len(publisher.asked) == (1 if status in (404, 403, 410) else fetching.TRIES)


def test_a_circle_of_redirects_ends(publisher, goal):
    publisher.manner = "circle"
    with pytest.raises(Refusal, match="circle"):
        fetch(publisher.url(), goal)


@pytest.mark.parametrize(
    ("manner", "digest"), [("claims more", SHA), ("claims more", ""), ("claims less", SHA)]
)
def test_a_lie_about_the_length_gets_no_name(publisher, goal, manner, digest):
    publisher.manner = manner
    with pytest.raises(Refusal):
        fetch(publisher.url(), goal, digest)
    assert not goal.exists()


@pytest.mark.parametrize("name", ["a.zip", "a.npz", "a.gz", "a.bz2"])
def test_an_archive_cut_short_is_noticed_without_a_digest(publisher, tmp_path, name):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", CONTENT)
    whole = {".gz": gzip.compress(CONTENT), ".bz2": bz2.compress(CONTENT)}.get(Path(name).suffix)
    publisher.content, publisher.manner = whole or packed.getvalue(), "claims less"
    with pytest.raises(UnreadableItem, match="not a whole"):
        fetch(publisher.url(name), tmp_path / name)
    assert not (tmp_path / name).exists()
    publisher.manner = ""
    fetch(publisher.url(name), tmp_path / name)
    assert (tmp_path / name).read_bytes() == publisher.content


def test_a_wrong_file_is_refused_and_nothing_kept(publisher, goal):
    publisher.content = b"another file"
    with pytest.raises(UnreadableItem, match="another file than the one"):
        fetch(publisher.url(), goal, SHA)
    assert left(goal) == set() and len(publisher.asked) == 1


def test_a_web_page_is_no_data(publisher, goal):
    publisher.content = b"\n <!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(UnreadableItem, match="web page"):
        fetch(publisher.url(), goal)
    assert left(goal) == set()


def test_what_is_there_is_never_written_over(publisher, goal):
    goal.parent.mkdir()
    goal.write_text("mine")
    with pytest.raises(Refusal, match="not written over"):
        fetch(publisher.url(), goal, SHA)
    goal.unlink()
    goal.symlink_to("nowhere")
    with pytest.raises(Refusal, match="not written over"):
        fetch(publisher.url(), goal, SHA)
    assert publisher.asked == [] and goal.is_symlink()


def test_one_at_a_time(publisher, goal):
    from filelock import FileLock

    goal.parent.mkdir()
    with FileLock(goal.parent / ".data.bin.lock"), pytest.raises(Refusal, match="another process"):
        fetch(publisher.url(), goal)


def test_a_full_disk_is_seen_before_the_first_byte(publisher, goal, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: Usage())
    with pytest.raises(Refusal, match="Make room"):
        fetch(publisher.url(), goal)


class Usage:
    free = 1000


@pytest.mark.parametrize("url", ["ftp://example.org/a", "file:///etc/passwd", "nonsense"])
def test_only_the_web_is_asked(goal, url):
    with pytest.raises(Refusal, match="https://"):
        fetch(url, goal)


def test_a_protected_address_that_leads_to_an_open_one_is_not_followed():
    import requests

    reply = requests.Response()
    reply.status_code, reply.url = 200, "http://elsewhere.example/data.bin"
    with pytest.raises(Refusal, match="not protected"):
        fetching._refuse_status("https://publisher.example/data.bin", reply)


# ---- without a network


@pytest.mark.parametrize("host", ["127.0.0.1", "publisher.invalid"])
def test_offline_is_said_at_once(goal, host):
    began = time.monotonic()
    with pytest.raises(Refusal, match="offline.*local folder"):
        fetch(f"http://{host}:{closed_port()}/data.bin", goal)
    assert time.monotonic() - began < 2 * fetching.PATIENCE and not goal.exists()


def test_a_silent_name_server_is_not_waited_for(goal, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_: time.sleep(20))
    began = time.monotonic()
    with pytest.raises(Refusal, match="offline"):
        fetch("http://publisher.invalid/data.bin", goal)
    assert time.monotonic() - began < 3


# ---- archives


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def test_an_archive_becomes_a_folder(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/y.txt": b"1", "z.txt": b"2"})
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out/x/y.txt").read_bytes() == b"1"
    with pytest.raises(Refusal, match="not written over"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../out.txt", "/etc/out.txt", "x/../../out.txt", "..\\out.txt", "C:/out.txt"]
)
def test_a_name_that_climbs_out_is_refused(tmp_path, name):
    archive = zipped(tmp_path / "a.zip", {"good.txt": b"1", name: b"2"})
    with pytest.raises(Refusal, match="outside"):
        unpack(archive, tmp_path / "deep" / "out")
    assert {path.name for path in tmp_path.rglob("*")} == {"a.zip"}


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(link, "/etc")
    with pytest.raises(Refusal, match="outside"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_bomb_is_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(150_000_000)})
    assert archive.stat().st_size < 200_000
    with pytest.raises(Refusal, match="claims"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_leaves_nothing(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.bin", CONTENT)
    spoilt = bytearray(archive.read_bytes())
    spoilt[500_000] ^= 255
    archive.write_bytes(spoilt)
    with pytest.raises(UnreadableItem, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


# ---- the catalog


def small_set(publisher: Publisher, digest: str = "", **changes) -> PublicSet:
    file = PublicFile("data.bin", publisher.url(), digest)
    return replace(CATALOG["pubmedqa"], name="small", files=(file,), **changes)


def test_every_entry_says_whose_it_is_and_how_it_is_read():
    for name, one in CATALOG.items():
        assert name == one.name and one.licence and one.citation and one.template
        assert one.home.startswith("http") and len({file.name for file in one.files}) == len(one.files)
        assert name in READERS or one.modality == "graph" or not one.files
        for file in one.files:
            kind, _, digest = file.digest.partition(":")
            assert file.url.startswith("https://") and Path(file.name).name == file.name
            assert not file.digest or (kind, len(digest)) in (("md5", 32), ("sha256", 64))
    assert set(READERS) <= set(CATALOG)


def test_digests_agree_with_the_library_that_hands_out_the_same_files():
    from torchvision.datasets import MNIST, USPS

    mine = {file.name: file.digest for name in ("mnist", "usps") for file in CATALOG[name].files}
    theirs = {**dict(MNIST.resources), **{name: md5 for _, name, md5 in USPS.split_list.values()}}
    assert mine == {name: f"md5:{digest}" for name, digest in theirs.items()}


@pytest.mark.parametrize(
    ("name", "file", "kept"),
    [
        ("pubmedqa", "ori_pqal.json", "text_pubmedqa/ori_pqal.json.gz"),
        ("pubmedqa", "test_ground_truth.json", "text_pubmedqa/test_ground_truth.json"),
        ("rare_diseases", "DO_rare_slim.obo", "knowledge_disease_graph/DO_rare_slim.obo.gz"),
    ],
)
def test_measured_digests_are_those_of_the_files(data_dir, name, file, kept):
    content = (data_dir / kept).read_bytes()
    content = gzip.decompress(content) if kept.endswith(".gz") else content
    stated = {one.name: one.digest for one in CATALOG[name].files}[file]
    assert stated == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_the_first_download_is_remembered_and_the_next_held_against_it(publisher, tmp_path):
    one = small_set(publisher)
    assert get_public(one, tmp_path) == tmp_path
    origin = json.loads((tmp_path / "origin.json").read_text())
    assert origin["licence"] == "MIT" and origin["files"]["data.bin"]["sha256"] == SHA.partition(":")[2]
    assert origin["files"]["data.bin"]["known"] is None
    get_public(one, tmp_path)  # here already: not asked for again
    assert len(publisher.asked) == 1
    (tmp_path / "data.bin").unlink()
    publisher.content = b"another edition"
    with pytest.raises(UnreadableItem, match="another file"):
        get_public(one, tmp_path)
    assert not (tmp_path / "data.bin").exists()
    publisher.content = CONTENT
    get_public(one, tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("digest", ["", SHA])
def test_a_file_of_ones_own_is_left_alone(publisher, tmp_path, digest):
    (tmp_path / "data.bin").write_text("mine")
    with pytest.raises(Refusal, match="--to" if digest else "read_public takes it.*--to"):
        get_public(small_set(publisher, digest), tmp_path)
    assert (tmp_path / "data.bin").read_text() == "mine" and publisher.asked == []


def test_a_right_copy_made_by_hand_is_taken(publisher, tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    get_public(small_set(publisher, MD5), tmp_path)
    assert publisher.asked == [] and (tmp_path / "origin.json").exists()


def test_a_folder_of_another_set_and_a_broken_record_are_refused(publisher, tmp_path):
    get_public(small_set(publisher), tmp_path)
    with pytest.raises(Refusal, match='holds the set "small"'):
        get_public("usps", tmp_path)
    for broken in ("{", "[]", '{"name": "small", "files": {"data.bin": 3}}'):
        (tmp_path / "origin.json").write_text(broken)
        with pytest.raises(Refusal, match="record of a download"):
            get_public(small_set(publisher), tmp_path)


def test_an_archive_of_a_set_is_unpacked_once(publisher, tmp_path):
    publisher.content = zipped(tmp_path / "a.zip", {"x/y.txt": b"1"}).read_bytes()
    one = small_set(publisher, unpacked="images")
    folder = get_public(one, tmp_path / "set")
    (folder / "images" / "mine.txt").write_text("kept")
    get_public(one, folder)
    assert {path.name for path in (folder / "images").iterdir()} == {"x", "mine.txt"}


def test_what_has_no_address_is_fetched_by_hand():
    with pytest.raises(Refusal, match=r"by hand from https://nihcc.*read_images"):
        get_public("nih_chest_xray")


# ---- the command line


def test_the_list_is_for_people_and_for_programs(capsys):
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(CATALOG) and all(row["licence"] for row in rows)
    assert main(["data", "list"]) == 0
    assert "usps" in capsys.readouterr().out


def test_get_shows_the_licence_and_answers_in_the_last_line(publisher, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(catalog.CATALOG, "small", small_set(publisher, SHA))
    assert main(["data", "get", "small", "--to", str(tmp_path / "s")]) == 0
    said = capsys.readouterr()
    assert "licence: MIT" in said.err and "cite: Jin, Dhingra" in said.err
    assert said.out.splitlines()[-1] == str(tmp_path / "s")
    assert main(["data", "get", "small", "--to", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "s")


def test_the_settings_say_where_it_goes(publisher, tmp_path, monkeypatch):
    monkeypatch.setenv("TLJUPYTER_DATA_DIR", str(tmp_path))
    assert get_public(small_set(publisher)) == tmp_path / "small"


@pytest.mark.parametrize("arguments", [["get", "usp"], ["get"], [], ["get", "nih_chest_xray"]])
def test_bad_input_ends_with_2(arguments, capsys):
    assert main(["data", *arguments]) == 2
    if arguments == ["get", "usp"]:
        assert 'Did you mean "usps"?' in capsys.readouterr().err


def test_without_a_network_the_command_ends_soon(tmp_path):
    "Through a proxy that is not there, as on a machine cut off."
    dead = f"http://127.0.0.1:{closed_port()}"
    surroundings = {**os.environ, "https_proxy": dead, "HTTPS_PROXY": dead, "no_proxy": "", "NO_PROXY": ""}
    command = [sys.executable, "-m", "tljupyter", "data", "get", "usps", "--to", str(tmp_path / "usps")]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=60)
    assert done.returncode == 2 and "local folder" in done.stderr and time.monotonic() - began < 20
    assert not (tmp_path / "usps" / "usps.bz2").exists()


def test_an_interrupted_get_goes_on(publisher, tmp_path, monkeypatch):
    "What a killed process has left is gone on with."
    monkeypatch.setattr(fetching, "CHUNK", 1000)

    def interrupt(file: str, here: int, total: int) -> None:
        if here >= 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_public(small_set(publisher), tmp_path, interrupt)
    assert left(tmp_path / "data.bin") == {".data.bin.part", ".data.bin.part.json"}
    get_public(small_set(publisher), tmp_path)
    assert publisher.asked[-1][1] == "bytes=500000-" and (tmp_path / "data.bin").read_bytes() == CONTENT


def test_after_kill_9_it_goes_on(publisher, tmp_path):
    publisher.manner = "drips"
    code = f"from tljupyter.domains.fetching import fetch; fetch({publisher.url()!r}, {str(tmp_path / 'data.bin')!r})"
    process, part = subprocess.Popen([sys.executable, "-c", code]), tmp_path / ".data.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    here, publisher.manner = part.stat().st_size, ""
    assert 200_000 < here < len(CONTENT) and not (tmp_path / "data.bin").exists()
    assert fetch(publisher.url(), tmp_path / "data.bin") == SHA
    assert publisher.asked[-1][1] == f"bytes={here}-"


# ---- from a publisher's form to a domain


def test_films_come_with_patients_and_sides(tmp_path):
    names = {
        "train/NORMAL/IM-0115-0001": 0,
        "train/PNEUMONIA/person7_virus_1": 1,
        "train/PNEUMONIA/person7_virus_2": 2,
    }
    for name in [*names, "test/NORMAL/NORMAL2-IM-0003-0001", "test/PNEUMONIA/person3_bacteria_9"]:
        path = tmp_path / "images/chest_xray" / f"{name}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), len(name)).save(path)
    zipped(tmp_path / "ChestXRay2017.zip", {"a": b""})
    domain = read_public("kermany_chest_xray", folder=tmp_path)
    assert domain.counts() == {"NORMAL": 2, "PNEUMONIA": 3} and len(set(domain.groups)) == 4
    assert sorted(domain.splits) == ["test", "test", "train", "train", "train"]


def test_mnist_in_its_own_form(tmp_path):
    rng = np.random.default_rng(1)
    for side, count in (("train", 20), ("t10k", 10)):
        images, labels = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        head = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">u4").tobytes()
        (tmp_path / f"{side}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes()
        (tmp_path / f"{side}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    domain = read_public("mnist", folder=tmp_path)
    assert (
        len(domain) == 30 and set(domain.counts().values()) == {3} and list(domain.splits).count("test") == 10
    )
    assert np.array_equal(np.asarray(domain.items[20]), images[0])


def test_usps_in_its_own_form(tmp_path):
    line = " ".join(f"{place}:{-1 if place % 2 else 1}" for place in range(1, 257))
    for name, digits in (("usps.bz2", (1, 10, 3)), ("usps.t.bz2", (1, 10))):
        content = "".join(f"{digit} {line}\n" for digit in digits)
        (tmp_path / name).write_bytes(bz2.compress(content.encode()))
    domain = read_public("usps", folder=tmp_path)
    assert domain.counts() == {"0": 2, "2": 1, "9": 2}
    assert np.asarray(domain.items[0]).ravel()[:3].tolist() == [0, 255, 0]


def test_reviews_in_their_own_form(tmp_path):
    with tarfile.open(tmp_path / "domain_sentiment_data.tar.gz", "w:gz") as packed:
        for label, count in (("positive", 3), ("negative", 2)):
            body = f"<review>\n<title>\nA {label} &amp; short one\n</title>\n<review_text>\nText\n</review_text>\n</review>\n"
            member = tarfile.TarInfo(f"sorted_data_acl/kitchen_&_housewares/{label}.review")
            member.size = len(body) * count
            packed.addfile(member, io.BytesIO(body.encode() * count))
    domain = read_public("amazon_reviews", "kitchen", tmp_path)
    assert domain.counts() == {"negative": 2, "positive": 3}
    assert domain.items[0] == "A negative & short one\nText"
    with pytest.raises(UnreadableItem, match="not in the form"):
        read_public("amazon_reviews", "books", tmp_path)


def test_pubmedqa_as_published(data_dir, tmp_path):
    kept = data_dir / "text_pubmedqa"
    (tmp_path / "ori_pqal.json").write_bytes(gzip.decompress((kept / "ori_pqal.json.gz").read_bytes()))
    (tmp_path / "test_ground_truth.json").write_bytes((kept / "test_ground_truth.json").read_bytes())
    domain = read_public("pubmedqa", folder=tmp_path)
    assert domain.counts() == {"maybe": 110, "no": 338, "yes": 552}
    assert list(domain.splits).count("test") == 500


def test_german_credit_in_its_own_form(data_dir, tmp_path):
    import pandas as pd

    rows = pd.read_csv(data_dir / "finance_german_credit" / "german_credit.csv")
    assert list(rows.columns) == GERMAN_COLUMNS
    rows["bad"] += 1
    zipped(
        tmp_path / "german_credit.zip",
        {"german.data": rows.to_csv(sep=" ", header=False, index=False).encode()},
    )
    assert read_public("german_credit", folder=tmp_path).counts() == {"0": 700, "1": 300}


def test_heart_disease_in_its_own_form(data_dir, tmp_path):
    import pandas as pd

    rows = pd.read_csv(data_dir / "bio_heart_4hospitals" / "heart.csv")
    members = {
        f"processed.{site}.data": group.drop(columns=["site", "disease"])
        .to_csv(header=False, index=False, na_rep="?")
        .encode()
        for site, group in rows.groupby("site")
    }
    zipped(tmp_path / "heart_disease.zip", members)
    found = {
        site: read_public("heart_disease", site, tmp_path).counts() for site in CATALOG["heart_disease"].parts
    }
    assert found["cleveland"] == {"0": 164, "1": 139} and found["switzerland"] == {"0": 8, "1": 115}


def test_taiwan_default_in_its_own_form(tmp_path):
    header = ",".join(["ID", *(f"X{column}" for column in range(1, 24)), "Y"])
    rows = [",".join(map(str, [row, *range(row, row + 23), row % 2])) for row in range(6)]
    (tmp_path / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    domain = read_public("taiwan_default", folder=tmp_path)
    assert domain.counts() == {"0": 3, "1": 3} and "ID" not in domain.items[0]


def test_bearings_in_their_own_form(tmp_path):
    rng = np.random.default_rng(2)
    for numbers in BEARING_RECORDS.values():
        for number in numbers:
            savemat(tmp_path / f"{number}.mat", {f"X{number:03}_DE_time": rng.normal(size=(2500, 1))})
    domain = read_public("cwru_bearing", "load 3", tmp_path)
    assert len(domain) == 18 and len(set(domain.groups)) == 9 and set(domain.counts()) == set(BEARING_RECORDS)


def test_movielens_in_its_own_form(tmp_path):
    rows = [f"{user}\t{item}\t{1 + (user + item) % 5}\t{item}" for user in range(1, 5) for item in range(10)]
    zipped(tmp_path / "ml-100k.zip", {"ml-100k/u.data": "\n".join(rows).encode()})
    domain = read_public("movielens_100k", folder=tmp_path)
    assert len(domain) == 40 and list(domain.splits).count("test") == 8


def test_medmnist_in_its_own_form(tmp_path):
    arrays = {}
    for side in ("train", "val", "test"):
        arrays[f"{side}_images"] = np.zeros((4, 28, 28), np.uint8)
        arrays[f"{side}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    assert read_public("pneumoniamnist", folder=tmp_path).counts() == {"0": 6, "1": 6}


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("usps", "", "tljupyter data get usps"),
        ("heart_disease", "virginia", "cleveland, hungarian"),
        ("usps", "books", "it has none"),
        ("rare_diseases", "", "read_obo"),
        ("nih_chest_xray", "", "read_images"),
        ("ups", "", 'Did you mean "usps"'),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, name, part, says):
    with pytest.raises(Refusal, match=says):
        read_public(name, part, tmp_path)


def test_the_rare_diseases_are_a_graph(data_dir, tmp_path):
    from tljupyter.transfer.relational.graphs import read_obo

    path = tmp_path / public_set("rare_diseases").files[0].name
    path.write_bytes(
        gzip.decompress((data_dir / "knowledge_disease_graph" / "DO_rare_slim.obo.gz").read_bytes())
    )
    assert len(read_obo(path).nodes) > 2000
