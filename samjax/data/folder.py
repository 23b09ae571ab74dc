"""Folders of pictures and mask pictures, and the layout that a meta.json describes."""

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

import numpy as np

from samjax.data.coco import Coco
from samjax.data.labels import Seen, read_ids, read_objects, seen
from samjax.data.records import Record
from samjax.data.sources import SPLITS, Joined, Source
from samjax.errors import InputError
from samjax.image import open_image
from samjax.inputs import SUFFIXES

IMAGES = ("images", "image", "imgs", "img", "JPEGImages")
MASKS = ("masks", "mask", "labels", "label", "annotations", "instances", "gt", "ground_truth", "groundtruth",
         "SegmentationObject", "SegmentationClass")
LOOKED_AT = 64  # masks of a folder, to learn what 255 means there
ENDING = re.compile(r"[ _.-]?(masks?|labels?|gt|seg|segmentation|instances?|inst|annotation)$", re.IGNORECASE)
NUMBER = re.compile(r"[ _-](?:mask[ _-]?)?\d+$", re.IGNORECASE)


class Folder(Source):
    """Pictures with mask pictures. items: (name, picture, masks), paths relative to root."""

    def __init__(self, root, items: Sequence[tuple[str, str, Sequence[str]]], kind: str = "auto", found=(), name=None):
        self.root, self.items, self.kind = Path(root), list(items), kind
        self.name, self.found = name or os.fspath(root), list(found)

    def __len__(self) -> int:
        return len(self.items)

    def item_name(self, index: int) -> str:
        return self.items[index][0]

    def record(self, index: int) -> Record:
        name, picture, masks = self.items[index]
        objects = [part for mask in masks for part in read_objects(self.root / mask, self.kind, lambda: self._seen)]
        return Record(name, partial(open_image, self.root / picture), objects)

    def segmentations(self, index: int) -> list[np.ndarray]:
        return [read_ids(self.root / mask, exact=True).values for mask in self.items[index][2]]

    @cached_property
    def _seen(self) -> list[Seen]:
        """What some masks, evenly spread, tell of what 255 means in all of them."""
        masks = [mask for *_, masks in self.items for mask in masks]
        found = set()
        for mask in masks[:: -(-len(masks) // LOOKED_AT)]:
            with contextlib.suppress(InputError, OSError):  # told of when it is its turn
                found.add(seen(read_ids(self.root / mask)))
        return list(found)


def from_meta(root: Path, kind: str = "auto") -> tuple[Source, list[str | None]]:
    """The source that root/meta.json describes, and each record's split."""
    path = root / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        items = [(item["image"], [item["mask"]] if isinstance(item["mask"], str) else list(item["mask"]),
                  item.get("split")) for item in meta["items"]]
    except ValueError as error:
        raise InputError(f"{path} is broken JSON: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a data set's description: each of its 'items' needs {error}") from None
    if not items:
        raise InputError(f"{path} lists no items")
    if not meta.get("coco_json"):
        return Folder(root, [(image, image, masks) for image, masks, _ in items], kind), [split for *_, split in items]
    source = Coco(root / meta["coco_json"], root / "images", "images/")
    places = {name: i for i, name in enumerate(source.names())}
    kept = [(places[image], split) for image, _, split in items if image in places]
    picked = source.select([i for i, _ in kept], os.fspath(root))
    picked.found = [(image, "has no objects") for image, *_ in items if image not in places]
    return picked, [split for _, split in kept]


def from_folders(root: Path, kind: str = "auto") -> tuple[Source, list[str | None]] | None:
    """Folders of pictures and masks in root, or in its train/ and val/; None where there are none."""
    parts = [(root, None)]
    parts += [(root / entry, SPLITS[entry.lower()]) for entry in sorted(os.listdir(root)) if entry.lower() in SPLITS]
    sources, splits = [], []
    for part, split in parts:
        images, masks = _child(part, IMAGES), _child(part, MASKS)
        if images is None or masks is None:
            continue
        source = _matched(root, images, masks, kind)
        sources.append(source)
        splits += [split or _split_of(name) for name in source.names()]
    if not sources:
        return None
    joined = sources[0] if len(sources) == 1 else Joined(sources, os.fspath(root))
    if not len(joined):
        raise InputError(f"{root}: no picture has a mask of its name; a/images/x.jpg goes with a/masks/x.png")
    return joined, splits


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _split_of(name: str) -> str | None:
    return next((SPLITS[part.lower()] for part in PurePosixPath(name).parts[:-1] if part.lower() in SPLITS), None)


def _matched(root: Path, images: Path, masks: Path, kind: str) -> Folder:
    pictures, others = _pictures(images), _pictures(masks)
    by_stem = _by_stem(pictures, others)
    here, there = images.relative_to(root).as_posix(), masks.relative_to(root).as_posix()
    items, found = [], []
    for picture in pictures:
        stem = os.path.splitext(picture)[0]
        if stem in by_stem:
            name = f"{here}/{picture}"
            items.append((name, name, [f"{there}/{mask}" for mask in by_stem[stem]]))
        else:
            found.append((f"{here}/{picture}", f"has no mask in {there}"))
    used = {mask for matched in by_stem.values() for mask in matched}
    found += [(f"{there}/{mask}", f"has no picture in {here}") for mask in others if mask not in used]
    return Folder(root, items, kind, found)


def _by_stem(pictures: Sequence[str], masks: Sequence[str]) -> dict[str, list[str]]:
    """The masks of each picture's stem: of its own name; with an ending such as _mask; numbered, or in a folder of its
    name. The first of these that there is."""
    stems = {os.path.splitext(picture)[0] for picture in pictures}
    ranked = defaultdict(lambda: ([], [], []))
    for mask in masks:
        stem = os.path.splitext(mask)[0]
        bare = ENDING.sub("", stem)
        for rank, guesses in enumerate(((stem,), (bare,), (NUMBER.sub("", stem), NUMBER.sub("", bare),
                                                           os.path.dirname(mask)))):
            if match := next((guess for guess in guesses if guess in stems), None):
                ranked[match][rank].append(mask)
                break
    return {stem: next(found for found in ranks if found) for stem, ranks in ranked.items()}


def _pictures(folder: Path) -> list[str]:
    """Picture files below the folder, relative, sorted; hidden ones never."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(where).relative_to(folder)
        found += [(below / name).as_posix() for name in files
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES]
    return sorted(found)
