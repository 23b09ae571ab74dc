"""Objects in mask pictures: instance ids, or classes of which every connected part is an object."""

import numpy as np
from PIL import Image

from samjax.data.records import Part
from samjax.errors import InputError
from samjax.image import open_image

KINDS = ("auto", "instances", "classes")
SOFT = 32  # grey values from which a mask may be antialiased, and not one of many classes: if an eighth is white
VOID = 255


def read_objects(path, kind: str = "auto") -> list[Part]:
    """The objects of a mask picture, in the order of their ids; 0, black and transparent are background.

    kind: "instances": each id (or colour) is an object; "classes": each 8-connected part of each class (or colour) is;
    "auto": instances in pictures of 16 bits and more, classes in all others. Of a grey or JPEG mask with soft edges,
    what is at least half bright is taken. In a palette picture with other classes, 255 is void. Neither is done to
    "instances", whose values are all ids.
    """
    ids, deep = read_ids(path, kind == "instances")
    if kind == "instances" or (kind == "auto" and deep):
        return _instances(ids)
    return [part for value in np.unique(ids[ids != 0]) for part in _connected(ids == value)]


def read_ids(path, exact: bool = False) -> tuple[np.ndarray, bool]:
    """Integer (h, w), 0 for background, and whether the file has more than 8 bits a pixel.

    exact: 8-bit values (not of a JPEG) as they are, neither hardened nor taken for void.
    """
    image = open_image(path)
    mode = image.mode
    if mode[0] in "IF":
        values = np.asarray(image)
        ids = values.astype(np.int64)
        if (ids != values).any() or ids.min() < 0:
            raise InputError(f"{path}: ids must be whole numbers from 0")
        return ids, True
    if mode == "1":
        return np.asarray(image).astype(np.uint8), False
    if mode == "P":
        return np.asarray(image) if exact else _without_void(np.asarray(image)), False
    if mode in ("L", "LA"):
        grey = np.asarray(image.getchannel(0))
        return grey if exact and image.format != "JPEG" else _hard(grey, image.format == "JPEG"), False
    return _colours(image), False


def _hard(grey: np.ndarray, lossy: bool) -> np.ndarray:
    soft = lossy or (len(np.unique(grey)) > SOFT and (grey == 255).sum() > (grey > 0).sum() / 8)
    return (grey >= 128).astype(np.uint8) if soft else grey


def _without_void(indices: np.ndarray) -> np.ndarray:
    others = indices[indices != VOID]
    return np.where(indices == VOID, 0, indices) if others.size and others.any() else indices


def _colours(image: Image.Image) -> np.ndarray:
    """Grey pictures as they are; of others each colour is an id."""
    rgba = np.asarray(image.convert("RGBA"))
    red, green, blue = (rgba[..., c] for c in range(3))
    if image.format == "JPEG" or ((red == green) & (green == blue)).all():
        ids = _hard(np.asarray(image.convert("L")), image.format == "JPEG")
    else:
        ids = (red.astype(np.int64) << 16) | (green.astype(np.int64) << 8) | blue
    return np.where(rgba[..., 3] > 0, ids, 0)


def _instances(ids: np.ndarray) -> list[Part]:
    from scipy import ndimage

    values, dense = np.unique(ids, return_inverse=True)  # ids may be large and far between
    dense = dense.reshape(ids.shape) + (1 if values[0] != 0 else 0)
    return [_part(dense, number, found) for number, found in enumerate(ndimage.find_objects(dense), 1)]


def _connected(mask: np.ndarray) -> list[Part]:
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3), int))
    return [_part(labels, number, found) for number, found in enumerate(ndimage.find_objects(labels), 1)]


def _part(labels: np.ndarray, number: int, found: tuple[slice, slice]) -> Part:
    rows, columns = found
    return Part(labels.shape, labels[found] == number, (columns.start, rows.start))
