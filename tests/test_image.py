"""samjax.image: every kind of picture becomes uint8 (h, w, c), and every broken one a clear InputError."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samjax.errors import InputError
from samjax.image import MAX_PIXELS, open_bytes, open_image, read_image, read_mask

TURNS = {  # how the stored pixels become the upright ones (EXIF 2.3, tag 0x0112)
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied(tmp_path, rgb, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), TURNS[orientation](rgb))
    assert np.array_equal(read_image(open_image(path)), TURNS[orientation](rgb))  # turned once, not twice
    assert np.array_equal(read_image(open_bytes(path.read_bytes(), "a.jpg")), TURNS[orientation](rgb))


@pytest.mark.parametrize("data, message", [(b"", "a.jpg is empty"), (b"text", "a.jpg is not an image"),
                                           (None, "a.jpg is damaged")])
def test_bytes_that_are_no_image(rgb, data, message):
    if data is None:
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, "PNG")
        data = buffer.getvalue()[:len(buffer.getvalue()) // 2]
    with pytest.raises(InputError, match=message):
        open_bytes(data, "a.jpg")


def test_orientation_of_a_pil_image_is_applied(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(read_image(image), np.rot90(rgb, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_ignored(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "1"])
def test_modes_become_what_convert_makes_of_them(rgb, mode):
    first = {"LA": "L", "PA": "P"}.get(mode, "RGB")
    image = Image.fromarray(rgb).convert(first).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(rgb[..., 0]))
    out = read_image(image)
    assert out.dtype == np.uint8 and out.flags.c_contiguous
    assert np.array_equal(out, np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_not_composited(tmp_path, rgb):
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert np.array_equal(read_image(tmp_path / "clear.png"), rgb)


def test_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "F"])
def test_deep_greys_are_scaled_by_their_percentiles(tmp_path, kind):
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[kind]
    values = np.linspace(1000, 5000, 10_000).reshape(100, 100).astype(dtype)
    path = tmp_path / "deep.tiff"
    Image.fromarray(values).save(path)
    out = read_image(path)
    low, high = np.percentile(values, (0.1, 99.9))
    assert out.shape == (100, 100, 3)
    assert np.array_equal(out[..., 1], np.rint(np.clip((values - low) / (high - low) * 255, 0, 255)))
    assert np.array_equal(read_image(path, channels=1)[..., 0], out[..., 0])


def test_sixteen_bit_extremes_do_not_darken_the_rest():
    values = np.tile(np.linspace(300, 900, 1000), (100, 1)).astype(np.uint16)
    values[0, 0] = 65535  # one hot pixel
    assert read_image(values).mean() == pytest.approx(127.5, abs=1)


def test_constant_sixteen_bit_is_zeros_and_two_values_are_the_extremes():
    flat = np.full((40, 50), 7000, np.uint16)
    assert not read_image(flat).any()
    flat[3, 4] = 7001  # too rare for the percentiles
    assert read_image(flat)[3, 4].tolist() == [255] * 3
    assert read_image(flat).sum() == 3 * 255


def test_sixteen_bit_colour_array_is_scaled_by_one_range():
    values = np.zeros((10, 10, 3), np.uint16)
    values[..., 0], values[..., 1] = 4000, 2000
    assert read_image(values)[0, 0].tolist() == [255, 128, 0]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 3), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 8), (8, 20_000)])
def test_extreme_sizes(tmp_path, size):
    Image.new("L", size, 77).save(tmp_path / "a.png")
    out = read_image(str(tmp_path / "a.png"))
    assert out.shape == (size[1], size[0], 3) and (out == 77).all()


def test_large_pictures_raise_no_alarm_and_pillows_limit_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("1", (300, 100)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == (100, 300, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def png_header(w, h):
    body = b"IHDR" + struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("w, h", [(2_000_000_000, 2_000_000_000), (100_000, 10_001)])
def test_a_header_that_claims_too_much_is_refused(tmp_path, w, h):
    assert w * h > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_header(w, h) + b"\0\0\0\0IDAT")
    with pytest.raises(InputError, match="bomb.png claims"):
        read_image(tmp_path / "bomb.png")


def test_broken_files(tmp_path, rgb):
    big = np.kron(rgb, np.ones((30, 30, 1), np.uint8))
    cases = {
        "text.png": (b"hello, this is not a picture\n", "is not an image"), "empty.jpg": (b"", "is empty"),
        "stub.png": (png_header(5, 5), "not an image|damaged"), "zeros.tif": (bytes(100), "is not an image"),
    }
    for suffix in ("jpg", "png", "webp", "gif", "bmp"):
        Image.fromarray(big).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        cases[f"cut.{suffix}"] = data[:len(data) // 2], r"cut\.\w+ (is damaged|is not an image|cannot be)"
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bits_raise_only_input_errors(tmp_path, rgb):
    rng = np.random.default_rng(1)
    for suffix in ("jpg", "png", "tiff", "gif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(rgb).save(path)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(100):
            broken = data.copy()
            broken[rng.integers(0, len(data), 3)] ^= rng.integers(1, 256, 3, np.uint8)
            path.write_bytes(broken.tobytes())
            with contextlib.suppress(InputError):
                assert read_image(path).ndim == 3


def test_missing_and_directory(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="directory"):
        read_image(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_image("nul\0byte.png")


def test_arrays(rgb):
    assert np.array_equal(read_image(rgb), rgb)
    grey = rgb[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(read_image(array), np.dstack([grey] * 3))
    assert np.array_equal(read_image(np.dstack([rgb, grey])), rgb)
    assert np.array_equal(read_image(rgb[:, ::-1]), rgb[:, ::-1])
    assert read_image(rgb[:, ::-1]).flags.c_contiguous
    assert np.array_equal(read_image(rgb.astype(np.int64)), rgb)
    assert np.array_equal(read_image(rgb / 255), rgb)
    assert np.array_equal(read_image((rgb / 255).astype(np.float32)), rgb)
    assert np.array_equal(read_image(grey > 99)[..., 0], np.where(grey > 99, 255, 0))
    assert np.array_equal(read_image(rgb.tolist()), rgb)


def test_jax_arrays(rgb):
    jnp = pytest.importorskip("jax.numpy")
    assert np.array_equal(read_image(jnp.asarray(rgb)), rgb)
    assert np.abs(read_image(jnp.asarray(rgb / 255, jnp.bfloat16)).astype(int) - rgb).max() <= 1


def test_one_channel_is_luminance(tmp_path, rgb):
    luminance = np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for source in (rgb, np.dstack([rgb, rgb[..., :1]]), Image.fromarray(rgb), tmp_path / "a.png"):
        assert np.array_equal(read_image(source, channels=1), luminance)
    assert np.array_equal(read_image(rgb[..., 0], channels=1), rgb[..., :1])


def test_other_channel_counts(rgb):
    five = np.dstack([rgb, rgb[..., :2]])
    assert np.array_equal(read_image(five, channels=5), five)
    four = np.dstack([rgb, rgb[..., :1]])
    assert np.array_equal(read_image(Image.fromarray(four), channels=4), four)
    with pytest.raises(InputError, match="3 channels.*takes 5"):
        read_image(rgb, channels=5)
    with pytest.raises(InputError, match="3 channels.*takes 5"):
        read_image(Image.fromarray(rgb), channels=5)


@pytest.mark.parametrize("array, message", [
    (np.full((4, 4, 3), np.nan), "NaN"), (np.full((4, 4, 3), np.inf), "NaN or infinity"),
    (np.full((4, 4), 200.0), "0..1"), (np.full((4, 4), -0.1), "0..1"), (np.full((4, 4), 256), "0..255"),
    (np.full((4, 4), -1), "0..255"), (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    (np.zeros(5, np.uint8), "h, w"), (np.zeros((1, 4, 4, 3), np.uint8), "h, w"),
    (np.zeros((3, 8, 8), np.uint8), "last axis"), (np.zeros((4, 4, 2), np.uint8), "2 channels"),
    (np.array([["a"]]), "not an image"), (None, "not an image"), (np.zeros((4, 4), complex), "not an image"),
    ([[1, 2], [3]], "not an image"),
])
def test_arrays_that_are_refused(array, message):
    with pytest.raises(InputError, match=message) as caught:
        read_image(array)
    assert "\n" not in str(caught.value)


def test_nan_in_a_float_file(tmp_path):
    Image.fromarray(np.float32([[1, np.nan]])).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match="a.tiff holds NaN"):
        read_image(tmp_path / "a.tiff")


def test_a_mode_that_pillow_cannot_convert_is_refused():
    with pytest.raises(InputError, match="colour mode La"):
        read_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("make", [
    lambda m: Image.fromarray(m), lambda m: Image.fromarray(m.astype(np.uint8)),
    lambda m: Image.fromarray(m.astype(np.uint16) * 300), lambda m: m, lambda m: m.astype(np.float32) * 0.2,
    lambda m: Image.fromarray(np.dstack([0 * m, 0 * m, m]).astype(np.uint8)),  # luminance 0
    lambda m: Image.fromarray(np.dstack([m | 255] * 3 + [m * 255]).astype(np.uint8)),  # cut out by alpha
    lambda m: m[..., None] * 255,
])
def test_masks_of_every_kind(make):
    mask = np.random.default_rng(2).random((7, 5)) > 0.5
    assert np.array_equal(read_mask(make(mask)), mask)


def test_mask_files(tmp_path):
    mask = np.zeros((64, 64), bool)
    mask[16:40, 8:56] = True
    for name in ("m.png", "m.jpg", "m.bmp"):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name), mask)
    with pytest.raises(InputError, match="no such file"):
        read_mask(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"\(h, w\)"):
        read_mask(np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match="NaN"):
        read_mask(np.full((3, 4), np.nan))


def test_the_example_photograph():
    out = read_image(Path(__file__).parents[1] / "examples" / "coffee.jpg")
    assert out.shape == (400, 600, 3) and out.std() > 40
