"""Reading pictures: any file, PIL image or array becomes uint8 (h, w, c). NumPy and Pillow only."""

import contextlib
import io
import math
import os
import threading

import numpy as np
from PIL import Image

from samjax.errors import InputError

MAX_PIXELS = 1_000_000_000  # 3 GB as RGB; a header that claims more is refused before anything is decoded
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[tag] for tag in (5, 6, 7, 8)}
FULL = "samjax full size"  # in Image.info
_open_lock = threading.Lock()


def read_image(source, channels: int = 3) -> np.ndarray:
    """A picture as uint8 (h, w, channels), C-contiguous, the right way up.

    source: a path (any format that Pillow reads; of an animation the first frame), a PIL image, or an array.
    EXIF orientation is applied. With three channels the answer is RGB, as `Image.convert("RGB")` makes it:
    grey is repeated, alpha is dropped and not composited. With one it is luminance. With any other number
    the source must have exactly that many. Values wider than 8 bits (16-bit, 32-bit and float files, uint16
    arrays) have no agreed white, so they are scaled linearly from their 0.1 to their 99.9 percentile, all
    channels alike, and clipped; a constant image becomes zeros. (Pillow cuts 16-bit *colour* PNGs to 8 bits.)

    Arrays are (h, w) or (h, w, c), anything that np.asarray takes. uint8 is used as it is, bool becomes
    0/255, other integers must lie in 0..255, floats in 0..1: a float image of 0..255 is refused, because a
    dark one could not be told from one of 0..1.

    Raises InputError: no such file, not an image, damaged, over MAX_PIXELS, wrong shape, range or channels.
    """
    if isinstance(source, (str, os.PathLike)):
        image, name = open_image(source), os.fspath(source)
    elif isinstance(source, Image.Image):
        image, name = _upright(_decode(source, "the PIL image")), "the PIL image"
    else:
        return _from_array(source, channels)
    return _from_pil(image, channels, name)


def read_mask(source) -> np.ndarray:
    """A mask as bool (h, w) from a path, PIL image or array: what is neither black nor transparent is set.

    A JPEG has noise around black, so there a pixel must be at least half bright. EXIF orientation is applied.
    Raises InputError as `read_image` does.
    """
    if isinstance(source, (str, os.PathLike)):
        image = open_image(source)
    elif isinstance(source, Image.Image):
        image = _upright(_decode(source, "the PIL image"))
    else:
        return _mask_from_array(source)
    if _is_deep(image):
        return np.asarray(image) != 0
    least = 128 if image.format == "JPEG" else 1
    opaque = np.asarray(image.convert("RGBA"))
    return (opaque[..., :3] >= least).any(axis=-1) & (opaque[..., 3] > 0)


def open_image(path, longest: int | None = None) -> Image.Image:
    """The PIL image at `path`, decoded and turned upright; raises InputError.

    longest: a JPEG may be decoded at an eighth, a quarter or half its size, but no side so short that the longest
    would be under this: quicker, and nearly what resizing gives. `full_hw` tells the size it had.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise InputError(f"{name} is a directory, not an image")
    empty = False
    with contextlib.suppress(OSError, ValueError):  # said better below
        empty = os.path.getsize(name) == 0
    if empty:
        raise InputError(f"{name} is empty")
    return _open(name, name, longest)


def check_header(path) -> None:
    """Raises the InputErrors of `open_image` that a file's first bytes tell: nothing is decoded."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            _open_header(file, name).close()
    except InputError:
        raise
    except Exception:  # plugins raise all sorts
        open_image(name).close()  # says what is wrong


def open_bytes(data: bytes, name: str, longest: int | None = None) -> Image.Image:
    """As `open_image`, of a file's contents; errors call it `name`."""
    if not data:
        raise InputError(f"{name} is empty")
    return _open(io.BytesIO(data), name, longest)


def full_hw(image: Image.Image) -> tuple[int, int]:
    """(h, w) of the picture that `open_image` was given, upright, whatever size it was decoded at."""
    return image.info.get(FULL, (image.height, image.width))


def _open(file, name: str, longest: int | None = None) -> Image.Image:
    try:
        image = _open_header(file, name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read it") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not an image that Pillow can read") from None
    except InputError:
        raise
    except Exception as error:  # plugins raise all sorts on damaged headers
        raise InputError(f"{name} cannot be read as an image: {_first_line(error)}") from None
    with image:
        kind, (w, h) = image.format, image.size
        if longest is not None and kind == "JPEG":
            scale = longest / max(w, h)
            image.draft(None, (math.ceil(w * scale), math.ceil(h * scale)))
        decoded = _decode(image, name)
        upright = _upright(decoded)
    upright.format = kind
    if decoded.size != (w, h):
        upright.info[FULL] = (h, w) if _turn(decoded) not in _SIDEWAYS else (w, h)
    return upright


def _open_header(file, name: str) -> Image.Image:
    """Image.open with our limit in place of Pillow's, which a panorama or a scanned slide exceeds."""
    with _open_lock:  # the limit is a global of Pillow's; nothing is decoded in here
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise InputError(f"{name} claims {image.width} x {image.height} pixels, over the limit of "
                         f"{MAX_PIXELS:,}: cut it into parts, or make it a tiled TIFF for samjax.tiling "
                         "(everything --tile)")
    return image


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise InputError(f"{name}: {image.width} x {image.height} pixels do not fit into memory") from None
    except Exception as error:  # truncated or damaged data: OSError, SyntaxError, struct.error ...
        raise InputError(f"{name} is damaged: {_first_line(error)}") from None
    if 0 in image.size:
        raise InputError(f"{name} has no pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # where Pillow finds an orientation:
        turned.info.pop(key, None)  # whoever reads the picture again would turn it once more
    return turned


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # a broken EXIF block does not make the picture unreadable
        return None


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"  # I;16 (any byte order), I, F


def _from_pil(image: Image.Image, channels: int, name: str) -> np.ndarray:
    if _is_deep(image):
        grey = _stretch(np.asarray(image), name)
        return _from_array(grey, channels)
    if channels not in (1, 3):
        if len(image.getbands()) != channels:
            raise InputError(f"{name} has {len(image.getbands())} channels; the model takes {channels}")
        return np.array(image, np.uint8)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB warns when the palette has transparency
    try:
        out = np.array(image.convert("RGB" if channels == 3 else "L"))
    except ValueError:
        raise InputError(f"{name}: colour mode {image.mode} is not supported: convert it to RGB") from None
    return out.reshape(*out.shape[:2], channels)


def _from_array(array, channels: int) -> np.ndarray:
    array = _checked(array)
    if array.ndim == 2:
        array = array[..., None]
    array = _to_uint8(array)
    have = array.shape[-1]
    if have == channels:
        return np.ascontiguousarray(array)
    if channels == 3 and have in (1, 4):
        return np.repeat(array, 3, axis=-1) if have == 1 else np.ascontiguousarray(array[..., :3])
    if channels == 1 and have in (3, 4):
        rgb = Image.fromarray(np.ascontiguousarray(array[..., :3]))
        return np.array(rgb.convert("L"))[..., None]
    raise InputError(f"an image of shape {array.shape} has {have} channels (its last axis); "
                     f"the model takes {channels}")


def _mask_from_array(array) -> np.ndarray:
    array = _checked(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise InputError(f"a mask must be an array (h, w), not {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("the mask holds NaN or infinity")
    return array != 0


def _checked(array) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise InputError(f"not an image: {_first_line(error)}") from None
    if array.dtype.kind not in "buif" and array.dtype.name != "bfloat16":
        raise InputError(f"an array of {array.dtype} is not an image: give a path, a PIL image or numbers")
    if array.ndim not in (2, 3):
        raise InputError(f"an image must be an array (h, w) or (h, w, channels), not {array.shape}")
    if 0 in array.shape:
        raise InputError(f"an image of shape {array.shape} has no pixels")
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _stretch(array, "the image array")
    low, high = array.min(), array.max()  # NaN carries through both
    if array.dtype.kind != "f":
        if low < 0 or high > 255:
            raise InputError(f"an integer image must lie in 0..255 (this {array.dtype} one spans "
                             f"{low}..{high}); 16-bit values belong in a uint16 array")
        return array.astype(np.uint8)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("the image array holds NaN or infinity")
    if low < 0 or high > 1:
        raise InputError(f"a float image must lie in 0..1 (this one spans {low:.4g}..{high:.4g}); "
                         "for values in 0..255 pass image.astype(numpy.uint8)")
    return np.rint(array * 255).astype(np.uint8)


def _stretch(array: np.ndarray, name: str) -> np.ndarray:
    """Linear scaling of the 0.1 .. 99.9 percentile range to 0..255."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity")
    low, high = np.percentile(array, (0.1, 99.9))
    if high <= low:  # nearly all one value: fall back on the extremes
        low, high = float(array.min()), float(array.max())
    out = np.zeros(array.shape, np.uint8)
    if high > low:
        for strip in range(0, len(array), 256):  # strips, because float64 is four times the size
            part = (array[strip:strip + 256].astype(np.float64) - low) * (255 / (high - low))
            out[strip:strip + 256] = np.rint(np.clip(part, 0, 255))
    return out


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
