"""Bad and unusual image files: each is read right, or is a clear finding that names it and loses nothing else."""

import io
import resource
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tljupyter.domains.gate import check
from tljupyter.domains.images import ImageFiles, read_image
from tljupyter.domains.readers import read_folder
from tljupyter.refusals import Refusal, UnreadableItem


def ramp(width: int = 96, height: int = 64) -> np.ndarray:
    "Brighter to the right, and a dark square at the top left that shows which way is up."
    values = np.tile(np.linspace(60, 250, width), (height, 1))
    values[: height // 4, : width // 4] = 0
    return values.astype(np.uint8)


def saved(picture: Image.Image, form: str, **options) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, form, **options)
    return stored.getvalue()


def grey_png(width: int, height: int) -> bytes:
    "A black PNG of one bit a pixel: a few kilobytes that claim any size."

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


JPEG = saved(Image.fromarray(ramp()), "jpeg")
PNG = saved(Image.fromarray(ramp()), "png")

BAD = {
    "text.jpg": (b"Patient: no finding.\n", "not an image"),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "empty.jpg": (b"", "not an image"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "damaged .*(?i:truncated)"),
    "head.jpg": (JPEG[:200], "damaged|not an image"),
    "cut.png": (PNG[: len(PNG) // 2], "damaged"),
    "flipped.png": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "cut.tif": (saved(Image.fromarray(ramp()), "tiff")[:3000], "damaged"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
    "film.dcm": (b"not a film", "film.dcm: not a readable DICOM"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    content, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableItem, match=says) as refusal:
        ImageFiles(tmp_path, [name])[0]
    assert str(refusal.value).startswith(name)


@pytest.mark.parametrize("left", [0.1, 0.4, 0.7, 0.95])
def test_a_jpeg_that_was_cut_anywhere_is_found(tmp_path, left):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8))
    whole = saved(noise, "jpeg")
    (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(UnreadableItem):
        read_image(tmp_path / "cut.jpg")


def test_bad_files_are_left_out_and_listed_and_the_others_kept(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("normal", "ill"):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (80, 80), dtype=np.uint8)).save(
                tmp_path / label / f"{number}.png"
            )
    for name, (content, _) in BAD.items():
        (tmp_path / "ill" / name).write_bytes(content)
    (tmp_path / "ill" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    report = check(read_folder(tmp_path))
    [found] = report.findings
    assert (found.kind, found.severity) == ("unreadable", "left out")
    assert set(found.names) == {f"ill/{name}" for name in BAD} | {"ill/gone.png"}
    assert report.enforce().counts() == {"ill": 3, "normal": 3}


def test_a_folder_of_nothing_but_bad_files_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_text("text")
    with pytest.raises(Refusal, match="none of 1 items can be read. a/x.jpg: not an image"):
        check(read_folder(tmp_path))


# Bombs


def test_a_bomb_is_refused_by_its_header_and_the_message_says_how_to_let_it_in(tmp_path):
    (tmp_path / "bomb.png").write_bytes(grey_png(30_000, 30_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UnreadableItem, match=r"bomb.png: 30,000 x 30,000 = 900,000,000 .*most_pixels=900000000"
    ):
        ImageFiles(tmp_path, ["bomb.png"])[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_the_limit_can_be_raised_above_the_one_of_pillow(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "large.png").write_bytes(grey_png(2 * limit // 9_000, 9_001))
    with pytest.raises(UnreadableItem, match="most_pixels"):
        read_folder(tmp_path).items[0]
    assert read_folder(tmp_path, most_pixels=10**9).items[0].size == (2 * limit // 9_000, 9_001)
    assert limit == Image.MAX_IMAGE_PIXELS


# Unusual but good


def test_every_colour_mode_becomes_grey_or_rgb(tmp_path):
    grey = Image.fromarray(ramp())
    colour = Image.merge("RGB", [grey, grey.point(lambda v: 255 - v), grey])
    clear = colour.copy()
    clear.putalpha(Image.fromarray(np.where(ramp() == 0, 0, 255).astype(np.uint8)))
    forms = {
        "cmyk.jpg": (colour.convert("CMYK"), "RGB"),
        "palette.png": (colour.quantize(64), "RGB"),
        "palette.gif": (colour.quantize(64), "RGB"),
        "clear.png": (clear, "RGB"),
        "clear_grey.png": (clear.convert("LA"), "L"),
        "two.png": (grey.point(lambda v: 255 * (v > 128)).convert("1"), "L"),
        "lab.tif": (Image.merge("LAB", [grey, grey, grey]), "RGB"),
        "grey.webp": (colour, "RGB"),
        "plain.bmp": (grey, "L"),
    }
    for name, (picture, mode) in forms.items():
        picture.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert (read.mode, read.size) == (mode, (96, 64)), name
    for name in ("cmyk.jpg", "palette.png", "palette.gif"):
        assert abs(np.asarray(read_image(tmp_path / name), int) - np.asarray(colour, int)).mean() < 12, name
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(("low", "high"), [(0, 4095), (1000, 1400), (0, 65535)])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_sixteen_bits_are_stretched_from_their_own_darkest_to_brightest(tmp_path, low, high, form):
    shares = ramp() / 255
    values = (low + (high - low) * (shares - shares.min()) / np.ptp(shares)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{form}")
    read = np.asarray(read_image(tmp_path / f"deep.{form}"))
    assert read.dtype == np.uint8 and (read.min(), read.max()) == (0, 255)
    assert abs(read / 255 - (values - low) / (high - low)).max() < 0.01


def test_float_pictures_with_holes(tmp_path):
    values = ramp().astype(np.float32) - 1000
    values[-1, -1] = np.nan
    Image.fromarray(values).save(tmp_path / "float.tif")
    read = np.asarray(read_image(tmp_path / "float.tif"))
    assert read[-1, -1] == 0 and read.max() == 255


@pytest.mark.parametrize("turn", range(1, 9))
def test_photographs_stored_sideways_stand_upright(tmp_path, turn):
    upright = Image.fromarray(ramp()).convert("RGB")
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    note = Image.Exif()
    note[0x0112] = turn
    (upright.transpose(undo[turn]) if turn in undo else upright).save(
        tmp_path / "photo.jpg", exif=note, quality=95
    )
    read = read_image(tmp_path / "photo.jpg")
    assert read.size == (96, 64) and abs(np.asarray(read, int) - np.asarray(upright, int)).mean() < 3


# DICOM


@pytest.fixture
def dicom(tmp_path):
    "Writes a film with pydicom and reads it."
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    def write(values: np.ndarray, scale: str = "MONOCHROME2", bits: int = 12, **tags):
        film = pydicom.Dataset()
        film.file_meta = FileMetaDataset()
        film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
        film.Rows, film.Columns = values.shape[:2]
        film.SamplesPerPixel = 3 if values.ndim == 3 else 1
        if values.ndim == 3:
            film.PlanarConfiguration = 0
        film.PhotometricInterpretation = scale
        film.BitsAllocated, film.BitsStored, film.HighBit = values.dtype.itemsize * 8, bits, bits - 1
        film.PixelRepresentation = 0
        for tag, value in tags.items():
            setattr(film, tag, value)
        film.PixelData = values.tobytes()
        film.save_as(tmp_path / "film.dcm", enforce_file_format=True)
        return tmp_path / "film.dcm"

    return write


def test_a_sixteen_bit_film(dicom):
    values = (ramp().astype(np.uint16)) * 16
    read = np.asarray(read_image(dicom(values)))
    assert read.dtype == np.uint8 and abs(read / 255 - values / values.max()).max() < 0.01


def test_white_means_dark_in_monochrome1(dicom):
    values = (ramp().astype(np.uint16)) * 16
    usual, reversed_scale = (
        np.asarray(read_image(dicom(values, scale))) for scale in ("MONOCHROME2", "MONOCHROME1")
    )
    assert (usual == 255 - reversed_scale).all()


def test_the_window_is_looked_through_after_the_rescale(dicom):
    values = np.arange(0, 4096, dtype=np.uint16).reshape(64, 64)
    window = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 1000}
    read = np.asarray(read_image(dicom(values, **window))).ravel().astype(int)
    physical = values.ravel() * 2.0 - 1000
    assert (read[physical < 490] == 0).all() and (read[physical > 1510] == 255).all()
    assert abs(read[physical == 1000] - 127).max() <= 2


def test_a_table_of_values_is_looked_through(dicom):
    pydicom = pytest.importorskip("pydicom")
    steps = pydicom.Dataset()
    steps.LUTDescriptor = [256, 0, 16]
    steps.add_new("LUTData", "US", [0] * 128 + [65535] * 128)
    values = ramp().astype(np.uint16)
    read = np.asarray(read_image(dicom(values, bits=8, VOILUTSequence=[steps])))
    assert (read == np.where(values < 128, 0, 255)).all()


def test_colours_of_films(dicom):
    from pydicom.pixels import convert_color_space

    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    for values, scale in ((red, "RGB"), (convert_color_space(red, "RGB", "YBR_FULL"), "YBR_FULL")):
        read = read_image(dicom(values, scale, bits=8))
        assert read.mode == "RGB" and abs(np.asarray(read, int) - red).max() <= 2


def test_the_middle_of_several_frames(dicom):
    frames = np.stack([np.full((8, 8), value, np.uint16) for value in (1, 2, 3)])
    frames[1, 0, 0] = 9
    path = dicom(frames.reshape(24, 8), Rows=8, Columns=8, NumberOfFrames=3)
    read = np.asarray(read_image(path))
    assert read[0, 0] == 255 and read[1:].max() == 0


def test_a_film_that_was_cut_and_one_that_is_too_large(dicom):
    path = dicom(ramp().astype(np.uint16))
    with pytest.raises(UnreadableItem, match="most_pixels=6144"):
        read_image(path, most_pixels=6000)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UnreadableItem, match="film.dcm: not a readable DICOM film"):
        read_image(path)


def test_without_pydicom_the_message_says_what_to_install(dicom, monkeypatch):
    path = dicom(ramp().astype(np.uint16))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        Refusal, match=r'film.dcm: DICOM needs pydicom: pip install "tljupyter\[dicom\]"'
    ) as refusal:
        check(read_folder(path.parent, unlabelled=True))
    assert not isinstance(refusal.value, UnreadableItem)
