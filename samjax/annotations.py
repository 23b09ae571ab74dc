"""What `everything` found, as files: SA-1B JSON, COCO instances JSON, a label map, an overlay. No JAX.

`records` are the dicts of `Sam.everything` in any output_mode; masks are decoded one at a time.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from samjax import rle
from samjax.draw import overlay
from samjax.errors import InputError

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}


class MaskList(Sequence):
    """The masks of some records, each bool (h, w) made when it is asked for."""

    def __init__(self, records: Sequence[dict]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        return rle.to_mask(self.records[index]["segmentation"])


def sa1b(records: Iterable[dict], image_hw: tuple[int, int], file_name: str, image_id: int = 0,
         first_id: int = 0) -> dict:
    """One picture as SA-1B has it: {"image": ..., "annotations": [...]} with COCO's compressed run lengths.

    Annotations are numbered from first_id.
    """
    h, w = (int(side) for side in image_hw)
    return {"image": {"image_id": image_id, "width": w, "height": h, "file_name": file_name},
            "annotations": [{"id": first_id + i, **_compressed(record)} for i, record in enumerate(records)]}


def coco(pictures: Iterable[dict]) -> dict:
    """Several pictures, each a dict from `sa1b`, as one COCO instances file with the single category "object".

    Ids count from 1. The scores stay beside COCO's own keys; `score` is the predicted IoU.
    """
    images, annotations = [], []
    for number, picture in enumerate(pictures, start=1):
        image = picture["image"]
        images.append({"id": number, "file_name": image["file_name"], "width": image["width"],
                       "height": image["height"]})
        for found in picture["annotations"]:
            annotations.append({**found, "id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY["id"],
                                "iscrowd": 0, "score": found["predicted_iou"]})
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def label_map(records: Sequence[dict], image_hw: tuple[int, int]) -> np.ndarray:
    """uint16 (h, w): 0 for background, i + 1 where record i is the smallest that covers the pixel.

    Raises InputError for more than 65535 records.
    """
    if len(records) > 65535:
        raise InputError(f"{len(records)} masks do not fit a 16-bit label map")
    labels = np.zeros(image_hw, np.uint16)
    masks = MaskList(records)
    for i in sorted(range(len(records)), key=lambda i: -records[i]["area"]):
        labels[masks[i]] = i + 1
    return labels


def overlay_all(image: np.ndarray, records: Sequence[dict]) -> Image.Image:
    """The picture, uint8 (h, w, 3), with every mask in a colour of its own, small ones on top."""
    return overlay(image, MaskList(records))


def save_json(path, value) -> None:
    """Writes JSON: whole or not at all. Raises InputError where it cannot be written."""
    path = os.fspath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _compressed(record: dict) -> dict:
    counts, size = rle.to_counts(record["segmentation"])
    return {**record, "segmentation": {"size": list(size), "counts": rle.compress(counts)}}
