"""Objects in mask pictures: instance ids, or classes of which every connected part is an object."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax.data.records import Part
from samjax.errors import InputError
from samjax.image import open_image

KINDS = ("auto", "instances", "classes")
SOFT = 32  # grey values from which a mask may be antialiased, and not one of many classes: if an eighth is white
VOID = 255  # "not annotated", in pictures of 8 bits that number their classes
NUMBERS = 32, 192  # classes are numbered from below the first on and below the second; other values are grey levels


class Ids(NamedTuple):
    """values: integer (h, w), 0 for background. kind: "deep" (more than 8 bits), "palette", "grey" (values of 8 bits
    as they are in the file), or "other" (colours, masks that were soft, bits)."""

    values: np.ndarray
    kind: str


class Seen(NamedTuple):
    """The classes of a mask picture besides 0 and 255, and whether 255 is there with them."""

    classes: frozenset[int] = frozenset()
    beside: bool = False
    palette: bool = False


def read_objects(path, kind: str = "auto", others: Callable[[], Iterable[Seen]] = tuple) -> list[Part]:
    """The objects of a mask picture, in the order of their ids; 0, black and transparent are background.

    kind: "instances": each id (or colour) is an object; "classes": each 8-connected part of each class (or colour) is;
    "auto": instances in pictures of 16 bits and more, classes in all others. Of a grey or JPEG mask with soft edges,
    what is at least half bright is taken; 255 may be void (see `is_void`). Neither is done to "instances", whose values
    are all ids.
    others: gives what was `seen` in other pictures of the same data; it is called if 255 is in a picture of classes.
    """
    ids = read_ids(path, kind == "instances")
    if kind == "instances" or (kind == "auto" and ids.kind == "deep"):
        return _instances(ids.values)
    classes = np.unique(ids.values[ids.values != 0])
    if ids.kind in ("palette", "grey") and VOID in classes and is_void([seen(ids), *others()]):
        classes = classes[classes != VOID]
    return [part for value in classes for part in _connected(ids.values == value)]


def seen(ids: Ids) -> Seen:
    """What a picture tells of what 255 means."""
    if ids.kind not in ("palette", "grey"):
        return Seen()
    values = {*np.unique(ids.values).tolist()} - {0}
    return Seen(frozenset(values - {VOID}), VOID in values and len(values) > 1, ids.kind == "palette")


def is_void(pictures: Iterable[Seen]) -> bool:
    """Whether 255 is void, as in PASCAL VOC or Cityscapes, and not an object, as in masks of 0 and 255.

    It is where it stands beside other classes in one of the pictures, or where they have several others. Grey values
    must look like classes that are numbered, from low numbers on: 0, 128, 255 are three classes.
    """
    pictures = [picture for picture in pictures if picture.classes]
    classes = frozenset().union(*(picture.classes for picture in pictures))
    grey = frozenset().union(*(picture.classes for picture in pictures if not picture.palette))
    if grey and not (min(grey) < NUMBERS[0] and max(grey) < NUMBERS[1]):
        return False
    return len(classes) > 1 or any(picture.beside for picture in pictures)


def read_ids(path, exact: bool = False) -> Ids:
    """The ids of a mask picture. Raises InputError.

    exact: 8-bit values (not of a JPEG) are never hardened.
    """
    image = open_image(path)
    mode = image.mode
    if mode[0] in "IF":
        values = np.asarray(image)
        ids = values.astype(np.int64)
        if (ids != values).any() or ids.min() < 0:
            raise InputError(f"{path}: ids must be whole numbers from 0")
        return Ids(ids, "deep")
    if mode == "1":
        return Ids(np.asarray(image).astype(np.uint8), "other")
    if mode == "P":
        return Ids(np.asarray(image), "palette")
    if mode in ("L", "LA"):
        grey = np.asarray(image.getchannel(0))
        return Ids(grey, "grey") if exact and image.format != "JPEG" else _hard(grey, image.format == "JPEG")
    return _colours(image)


def _hard(grey: np.ndarray, lossy: bool) -> Ids:
    soft = lossy or (len(np.unique(grey)) > SOFT and (grey == 255).sum() > (grey > 0).sum() / 8)
    return Ids((grey >= 128).astype(np.uint8), "other") if soft else Ids(grey, "grey")


def _colours(image: Image.Image) -> Ids:
    """Grey pictures as they are; of others each colour is an id."""
    rgba = np.asarray(image.convert("RGBA"))
    red, green, blue = (rgba[..., c] for c in range(3))
    if image.format == "JPEG" or ((red == green) & (green == blue)).all():
        ids, kind = _hard(np.asarray(image.convert("L")), image.format == "JPEG")
    else:
        ids, kind = (red.astype(np.int64) << 16) | (green.astype(np.int64) << 8) | blue, "other"
    return Ids(np.where(rgba[..., 3] > 0, ids, 0), kind)


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
