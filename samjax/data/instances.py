"""A COCO or LVIS annotation file as detectors are judged by it: with ids, categories, areas, crowds, empty pictures.

`samjax.data.coco.Coco` reads the same files for what prompts are made of, and has none of these. NumPy only.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from samjax.data.coco import _file_name, _find_images, _load, _mask, _picture
from samjax.data.records import Mask, decode_all
from samjax.errors import InputError
from samjax.image import open_image

Id = int | str


@dataclass(frozen=True)
class Instance:
    """One annotation. area: as the file has it, None where it says nothing; crowd: a region in which detections are
    neither right nor wrong."""

    id: Id | None
    category: Id
    segmentation: object
    area: float | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """One picture's annotations. size: (h, w).

    judged: the categories that the picture has been searched for, None for all of them; open_ended: those of which
    some objects may not be annotated. Both are LVIS's, which has every category annotated in some pictures only.
    """

    id: Id
    name: str
    size: tuple[int, int]
    instances: tuple[Instance, ...] = ()
    judged: frozenset | None = None
    open_ended: frozenset = frozenset()

    def masks(self) -> list[Mask]:
        """Of the instances. Raises InputError: damaged, of another size than the picture."""
        masks = [_mask(instance.segmentation, self.size) for instance in self.instances]
        for mask in masks:
            if mask.size != self.size:
                raise InputError(f"a mask of {mask.size[1]} x {mask.size[0]} pixels (width x height), but the picture "
                                 f"is {self.size[1]} x {self.size[0]}")
        decode_all(masks)
        return masks


class Instances:
    """The file at `path`. images: the folder of its pictures; found near the file if it is not given.

    scenes: its pictures in its own order; categories: {id: name}; federated: whether the file has LVIS's lists of
    categories for each picture. Raises InputError: no such file, not as COCO has it, no pictures there.
    """

    def __init__(self, path, images=None):
        self.path, self.name = Path(os.path.abspath(path)), os.fspath(path)
        if self.path.is_dir():
            raise InputError(f"{path} is a folder: detections are of the pictures of one COCO .json, so name that")
        if not self.path.is_file():
            raise InputError(f"{path}: no such file")
        content = _load(path)
        if not isinstance(content.get("categories"), list):
            raise InputError(f"{path} is not as COCO has it: it needs the list 'categories'")
        try:
            self.categories = {_id(each["id"]): str(each.get("name", each["id"])) for each in content["categories"]}
            self.scenes = _scenes(content, self.categories)
        except InputError as error:
            raise InputError(f"{path} {error}") from None
        except KeyError as error:
            raise InputError(f"{path} is not as COCO has it: {error} is missing from an image, annotation or "
                             "category") from None
        except (TypeError, ValueError, AttributeError):
            raise InputError(f"{path} is not as COCO has it: an image, annotation or category is of the wrong "
                             "form") from None
        if not self.scenes:
            raise InputError(f"{path} has no pictures")
        self.federated = any(scene.judged is not None for scene in self.scenes)
        self.images = _find_images(self, images)

    def __len__(self) -> int:
        return len(self.scenes)

    def file_name(self, index: int) -> str:
        return self.scenes[index].name

    def open(self, index: int) -> Image.Image:
        """The picture, upright. Raises InputError: missing, damaged."""
        return open_image(_picture(self.images, self.file_name(index)))


def _scenes(content: dict, categories: dict) -> list[Scene]:
    found = {_id(image["id"]): [] for image in content["images"]}
    if len(found) < len(content["images"]):
        raise InputError("is not as COCO has it: two images have the same id")
    for each in content["annotations"]:
        if each["image_id"] in found:
            found[each["image_id"]].append(_instance(each))
    missing = {one.category for some in found.values() for one in some} - categories.keys()
    if missing:
        raise InputError(f"is not as COCO has it: its annotations have the category_id {min(missing, key=str)!r}, "
                         "which is not among its categories")
    return [_scene(image, tuple(found[image["id"]])) for image in content["images"]]


def _scene(image: dict, instances: tuple[Instance, ...]) -> Scene:
    judged, size = None, (int(image["height"]), int(image["width"]))
    if min(size) < 1:
        raise ValueError
    if "neg_category_ids" in image:
        judged = frozenset(image["neg_category_ids"]) | {instance.category for instance in instances}
    return Scene(image["id"], _file_name(image), size, instances, judged,
                 frozenset(image.get("not_exhaustive_category_ids", ())))


def _instance(found: dict) -> Instance:
    area = None if found.get("area") is None else float(found["area"])
    if area is not None and not 0 <= area < float("inf"):
        raise ValueError
    return Instance(found.get("id"), _id(found["category_id"]), found.get("segmentation"), area,
                    bool(found.get("iscrowd")))


def _id(value) -> Id:
    if not isinstance(value, (int, str)):
        raise TypeError
    return value
