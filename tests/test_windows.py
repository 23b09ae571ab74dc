"""samjax.windows: windows of every kind of file are those of the whole picture, and whole files are not read."""

import io

import numpy as np
import pytest
from PIL import Image
from tiled_tiff import write_tiled

import samjax
from samjax import spool, tiff, windows
from samjax.image import read_image
from samjax.windows import open_picture

H, W = 150, 203
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
RGB[40:90, 30:120] = RGB[40, 30]  # so that all compressions have something to do
GREY16 = (np.random.default_rng(1).normal(9000, 3000, (H, W)).clip(0, 65535)).astype(np.uint16)
BOXES = [(0, 0, 1, 1), (10, 20, 90, 77), (3, 100, 203, 150), (0, 64, 203, 65), (0, 0, 203, 150), (60, 5, 67, 150)]


def same_windows(picture, whole):
    assert picture.shape == whole.shape
    h, w = whole.shape[:2]
    for x0, y0, x1, y1 in BOXES:
        if h > w:
            x0, y0, x1, y1 = y0, x0, y1, x1
        part = picture.read(x0, y0, x1, y1)
        assert part.dtype == np.uint8 and part.flags.c_contiguous
        np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


def tiled(path, array=RGB, **how):
    array = array if array.ndim == 3 else array[..., None]
    write_tiled(path, array.shape[:2], lambda x0, y0, x1, y1: array[y0:y1, x0:x1], channels=array.shape[2],
                dtype=array.dtype, tile=how.pop("tile", (32, 48)), **how)
    return path


TIFFS = [dict(compression="none"), dict(), dict(predictor=True), dict(compression="tiff_lzw", predictor=True),
         dict(compression="packbits"), dict(compression="jpeg"), dict(big=True), dict(order=">"),
         dict(big=True, order=">", compression="none"), dict(planar=True), dict(planar=True, predictor=True),
         *(dict(turn=turn) for turn in range(1, 9)), dict(tile=(256, 512))]


@pytest.mark.parametrize("how", TIFFS, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiled_tiff_gives_what_pillow_reads(tmp_path, how, channels):
    path = tiled(tmp_path / "a.tif", **dict(how))
    with open_picture(path, channels, in_memory=0) as picture:
        assert isinstance(picture._source, windows._Segments)
        pillow_cannot = how.get("big") and how.get("order") == ">"
        same_windows(picture, read_image(RGB if pillow_cannot else path, channels))
    if channels == 3 and not pillow_cannot and how.get("compression") != "jpeg" and "turn" not in how:
        np.testing.assert_array_equal(read_image(path), RGB)  # the file is right, not only read alike


@pytest.mark.parametrize("array", [RGB[..., 0], np.dstack([RGB, RGB[..., 1]]), GREY16], ids=["grey", "rgba", "grey16"])
@pytest.mark.parametrize("how", [dict(), dict(predictor=True), dict(order=">", compression="none")], ids=str)
def test_other_pixels_in_tiles(tmp_path, array, how):
    path = tiled(tmp_path / "a.tif", array, **how)
    with open_picture(path, in_memory=0) as picture:
        assert isinstance(picture._source, windows._Segments)
        same_windows(picture, read_image(path))


@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "I;16"])
def test_a_stripped_tiff_gives_what_pillow_reads(tmp_path, rows, compression, mode):
    image = Image.fromarray(GREY16) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    if compression == "jpeg" and mode not in ("RGB", "L"):
        return
    rows = 16 if compression == "jpeg" and rows == 7 else rows
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo={278: rows})
    with open_picture(tmp_path / "a.tif", in_memory=0) as picture:
        assert isinstance(picture._source, windows._Segments)
        same_windows(picture, read_image(tmp_path / "a.tif"))


def test_an_uncompressed_strip_is_cut_between_rows(tmp_path, monkeypatch):
    h, w = 3000, 400
    array = np.random.default_rng(2).integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.tif", tiffinfo={278: h})
    with open_picture(tmp_path / "a.tif", in_memory=0) as picture:
        read = []
        decoded = picture._source.tiff._decoded
        monkeypatch.setattr(picture._source.tiff, "_decoded", lambda index: read.append(index) or decoded(index))
        np.testing.assert_array_equal(picture.read(5, 2990, 300, 3000), array[2990:, 5:300])
        assert len(read) == 1 and picture._source.tiff.segment_hw[0] < 1000


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_one_strip_of_unsaid_length(tmp_path, in_memory):
    """Old writers leave StripByteCounts out of uncompressed files."""
    path = tmp_path / "a.tif"
    Image.fromarray(RGB).save(path, tiffinfo={278: H})
    content = path.read_bytes()
    at = content.rindex(b"\x17\x01\x04\x00")  # the entry of tag 279, a LONG
    path.write_bytes(content[:at] + b"\x17\xff" + content[at + 2 :])
    with open_picture(path, in_memory=in_memory) as picture:
        same_windows(picture, RGB)


def test_only_the_tiles_that_a_window_touches_are_read_and_few_are_kept(tmp_path, monkeypatch):
    with open_picture(tiled(tmp_path / "a.tif"), in_memory=0) as picture:
        read, whole = [], picture._source.tiff
        decoded = whole._decoded
        monkeypatch.setattr(whole, "_decoded", lambda index: read.append(index) or decoded(index))
        picture.read(47, 31, 97, 33)  # 5 tiles across: columns 0 to 2 of rows 0 and 1
        assert read == [0, 1, 2, 5, 6, 7]
        picture.read(0, 0, 96, 32)
        assert len(read) == 6
        monkeypatch.setattr(tiff, "CACHE", 3 * 32 * 48 * 3)
        picture.read(0, 0, W, H)
        assert whole._bytes <= tiff.CACHE and len(whole._kept) == 3


def test_a_sparse_file_has_zeros(tmp_path):
    array = RGB * (np.arange(W) > 100)[:, None].astype(np.uint8)
    with open_picture(tiled(tmp_path / "a.tif", array, sparse=True), in_memory=0) as picture:
        assert (picture._source.tiff.sizes == 0).any()
        same_windows(picture, array)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 7])
def test_what_cannot_be_read_at_random_is_decoded_once_elsewhere(tmp_path, kind, turn):
    path, exif = tmp_path / f"a.{kind}", Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(RGB).save(path, **({} if kind == "bmp" else {"exif": exif}))
    with open_picture(path, in_memory=0) as picture:
        assert isinstance(picture._source, windows._Rows)
        same_windows(picture, read_image(path))


@pytest.mark.parametrize("mode, channels", [("P", 3), ("LA", 3), ("RGBA", 1), ("I;16", 3), ("CMYK", 4)])
def test_modes_of_such_files(tmp_path, mode, channels):
    image = Image.fromarray(GREY16) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    with open_picture(path, channels, in_memory=0) as picture:
        same_windows(picture, read_image(path, channels))


@pytest.mark.parametrize("array", [RGB, RGB[..., 0], RGB[..., :1] > 99, RGB.astype(np.float32) / 255, GREY16,
                                   GREY16.astype(">u2"), np.asfortranarray(RGB), RGB.astype(np.int32),
                                   np.full((H, W), 7, np.uint16)],
                         ids=["rgb", "grey", "bool", "float", "grey16", "big-endian", "fortran", "int32", "constant16"])
def test_arrays_and_npy_files(tmp_path, array):
    whole = read_image(array)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", np.load(tmp_path / "a.npy", mmap_mode="r")):
        for in_memory in (0, 2**26):
            with open_picture(source, in_memory=in_memory) as picture:
                same_windows(picture, whole)


def test_pil_images_and_small_files(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    whole = read_image(tmp_path / "a.png")
    tiled(tmp_path / "b.tif", turn=6)
    for in_memory in (0, 2**26):
        same_windows(open_picture(Image.open(tmp_path / "a.png"), in_memory=in_memory), whole)
        same_windows(open_picture(Image.open(tmp_path / "b.tif"), in_memory=in_memory), whole)
        same_windows(open_picture(Image.fromarray(GREY16), in_memory=in_memory), read_image(GREY16))
    same_windows(open_picture(tmp_path / "a.png"), whole)
    picture = open_picture(RGB)
    assert open_picture(picture) is picture


def test_percentiles_are_numpys():
    random = np.random.default_rng(0)
    for n in (1, 2, 7, 1000, 5000):
        values = random.integers(0, 500, n)
        for q in (0.1, 33.3, 50, 99.9):
            assert windows._percentile(np.bincount(values, minlength=600), q) == pytest.approx(np.percentile(values, q))


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])
    return path


def test_mistakes_are_named(tmp_path, monkeypatch):
    def fails(source, match, channels=3):
        with pytest.raises(samjax.InputError, match=match) as caught:
            open_picture(source, channels, in_memory=0).read(0, 0, W, H)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "none.tif", "no such file")
    fails(tmp_path, "is a directory")
    (tmp_path / "empty.png").write_bytes(b"")
    fails(tmp_path / "empty.png", "is empty")
    (tmp_path / "text.tif").write_bytes(b"II*\0\x08\0\0\0")
    fails(tmp_path / "text.tif", "ends within its header")
    (tmp_path / "text.png").write_bytes(b"hello, world")
    fails(tmp_path / "text.png", "not an image that Pillow can read")
    fails(cut(tiled(tmp_path / "cut.tif"), 9000), "ends within its header")
    with open(tiled(tmp_path / "scratched.tif"), "rb") as file:
        at = tiff.Tiff(file, "").offsets[7]
    raw = bytearray((tmp_path / "scratched.tif").read_bytes())
    raw[at : at + 400] = b"\xff" * 400
    (tmp_path / "scratched.tif").write_bytes(raw)
    fails(tmp_path / "scratched.tif", "is damaged")
    Image.fromarray(RGB).save(tmp_path / "whole.png")
    fails(cut(tmp_path / "whole.png", 40000), "whole.png is damaged")
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    fails(tmp_path / "float.tif", "mode F and this size are not supported")
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2, 2)))
    fails(tmp_path / "cube.npy", "not an image")
    fails(cut(tmp_path / "cube.npy", 100), "no array that can be read")
    fails(np.zeros((H, W, 5), np.uint8), "has 5 channels")
    fails(np.full((H, W, 3), 2.0), "must lie in 0..1")
    fails(open_picture(RGB, 1), "was opened with 1 channels")
    with monkeypatch.context() as patch:
        patch.setattr(spool.shutil, "disk_usage", lambda folder: type("", (), {"free": 1000}))
        fails(tmp_path / "whole.png", "has only 0.0 GB left")
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_CHILD", "import os; os._exit(9)")
        fails(tmp_path / "whole.png", "ended with status 9")
    with pytest.raises(ValueError, match="does not lie in"):
        open_picture(RGB).read(0, 0, W + 1, 5)


def test_a_damaged_header_is_no_traceback():
    random = np.random.default_rng(3)
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF", compression="tiff_lzw", tiffinfo={278: 32})
    raw = np.frombuffer(buffer.getvalue(), np.uint8)
    errors = 0
    for _ in range(150):
        broken = raw.copy()
        broken[random.choice([*range(4, 8), *range(len(raw) - 400, len(raw))], 3)] = random.integers(0, 256, 3)
        try:
            whole = tiff.Tiff(io.BytesIO(broken.tobytes()), "x.tif")
            if whole.readable:
                whole.read((0, 0, *whole.hw[::-1]) if max(whole.hw) < 1000 else (0, 0, 9, 9), np.asarray)
        except samjax.InputError:
            errors += 1
    assert errors > 10
