"""COCO and LVIS: one JSON of all pictures and annotations, beside a folder of pictures."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from samjax.data.index import open_index
from samjax.data.records import Mask, Polygons, Record, to_rle
from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.image import open_image

NEAR = ("", "images", "train", "val", "test", "train2017", "val2017", "test2017", "JPEGImages")


class Coco(Source):
    """Polygons, counts and compressed run lengths; crowds (iscrowd) are passed over.

    The JSON is read once, into an index in the cache directory; after that a record costs its own annotations only.
    images: the folder of the pictures; found near the JSON if it is not given. Pictures without objects are left out.
    prefix: put before the file names to make the records' names.
    """

    def __init__(self, path, images=None, prefix: str = ""):
        self.prefix = prefix
        self.path, self.name = Path(os.path.abspath(path)), os.fspath(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        self.index = open_index(self.path, _build)
        self.length = len(self.index["names"])
        self.found = [(prefix + name.decode(), "has no objects") for name in self.index["empty"]]
        if not self.length:
            raise InputError(f"{path} has no picture with objects")
        self.images = _find_images(self, images)

    def __len__(self) -> int:
        return self.length

    def file_name(self, index: int) -> str:
        return bytes(self.index["names"][index]).decode()

    def item_name(self, index: int) -> str:
        return self.prefix + self.file_name(index)

    def record(self, index: int) -> Record:
        start, stop = self.index["starts"][index:index + 2]
        h, w, annotations = json.loads(self.index["text"][start:stop].tobytes())
        return Record(self.item_name(index), partial(open_image, _picture(self.images, self.file_name(index))),
                      [_mask(found, (h, w)) for found in annotations])


def is_coco(path) -> bool:
    """Whether a .json looks like a COCO instances file, by its beginning: it may be a gigabyte long."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    # SA-1B's have "image" and "annotations"; LVIS's begin with long "annotations", COCO's with long "images".
    return head.lstrip().startswith(b"{") and (b'"images"' in head or
                                               (b'"annotations"' in head and b'"image"' not in head))


def _load(path) -> dict:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is broken JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(found, list) for found in lists):
        raise InputError(f"{path} is not as COCO has it: it needs the lists 'images' and 'annotations'")
    return content


def _build(path: Path) -> dict[str, np.ndarray]:
    content = _load(path)
    try:
        by_image = {image["id"]: [] for image in content["images"]}
        for found in content["annotations"]:
            if not found.get("iscrowd") and found["image_id"] in by_image:
                by_image[found["image_id"]].append(found.get("segmentation"))
        rows = [(_file_name(image), (int(image["height"]), int(image["width"]), by_image[image["id"]]))
                for image in content["images"]]
    except KeyError as error:
        raise InputError(f"{path} is not as COCO has it: {error} is missing from an image or annotation") from None
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"{path} is not as COCO has it: an image or annotation is of the wrong form") from None
    texts = [json.dumps(row, separators=(",", ":")).encode() for _, row in rows if row[2]]
    return {"names": np.array([name.encode() for name, row in rows if row[2]], "S"),
            "empty": np.array([name.encode() for name, row in rows if not row[2]], "S"),
            "starts": np.cumsum([0, *map(len, texts)], dtype=np.int64),
            "text": np.frombuffer(b"".join(texts), np.uint8)}


def _file_name(image: dict) -> str:
    """LVIS has no file_name, but an address that ends in folder and name."""
    if "file_name" in image:
        return image["file_name"].replace("\\", "/")
    return "/".join(image["coco_url"].split("/")[-2:])


def _mask(segmentation, size: tuple[int, int]) -> Mask:
    if isinstance(segmentation, list) and segmentation:
        return Polygons(size, segmentation)
    try:
        return to_rle(segmentation)
    except (KeyError, TypeError, ValueError):
        raise InputError("an annotation has no segmentation (only a box?)") from None


def _find_images(source: Coco, images) -> Path:
    names = [source.file_name(i) for i in {0, len(source) // 2, len(source) - 1}]
    if images is not None:
        places = [Path(images)]
    else:
        parent = source.path.parent
        places = [root / near for root in (parent, parent.parent, parent.parent / "images") for near in NEAR]
    for place in places:
        if any(_picture(place, name).is_file() for name in names):
            return place
    where = f"in {images}" if images is not None else f"near {source.name}"
    raise InputError(f"{source.name} names pictures such as {names[0]}, but there are none {where}: give the folder "
                     "that holds them")


def _picture(folder: Path, name: str) -> Path:
    """A picture by its name, or, for a name with folders that are not there, by its last part."""
    path = folder / name
    return path if "/" not in name or path.is_file() else folder / name.rsplit("/", 1)[1]
