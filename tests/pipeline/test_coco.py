"""COCO and LVIS files against pycocotools."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
from made import coco_file, compressed, picture, shapes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from samjax import rle
from samjax.data import open_source
from samjax.data.coco import Coco, is_coco
from samjax.errors import InputError

SIZES = {"a.jpg": (40, 60), "b.jpg": (50, 30), "empty.jpg": (20, 20), "crowd.jpg": (20, 20)}


@pytest.fixture
def root(tmp_path):
    """Every form of a mask."""
    rng = np.random.default_rng(0)
    annotations = []
    for image_id, hw in ((1, (40, 60)), (2, (50, 30))):
        first, second, third = shapes(rng, hw, 3)
        polygons = [rng.uniform(0, 30, 10).tolist(), [1, 1, 25, 1, 25, 22.5, 1, 22]]
        for segmentation in (compressed(first), polygons, {"size": list(hw), "counts": rle.encode(second).tolist()},
                             polygons[1:]):
            annotations.append({"image_id": image_id, "segmentation": segmentation, "iscrowd": 0})
        annotations.append({"image_id": image_id, "segmentation": compressed(third), "iscrowd": 1})
    annotations.append({"image_id": 4, "segmentation": {"size": [20, 20], "counts": [0, 400]}, "iscrowd": 1})
    annotations = [{**found, "id": k, "category_id": 1} for k, found in enumerate(annotations, 1)]
    for name, hw in SIZES.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(rng, hw).save(tmp_path / "images" / name)
    coco_file(tmp_path / "annotations" / "instances.json", SIZES, annotations)
    return tmp_path


def test_equal_to_pycocotools(root):
    path = root / "annotations" / "instances.json"
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(path)
    source = open_source(path)
    assert source.names() == ["a.jpg", "b.jpg"]
    assert source.found == [("empty.jpg", "has no objects"), ("crowd.jpg", "has no objects")]
    for image_id, record in enumerate(pickle.loads(pickle.dumps(source)), 1):
        wanted = official.loadAnns(official.getAnnIds(image_id, iscrowd=False))
        assert len(wanted) == 4
        for found, annotation in zip(record.objects, wanted, strict=True):
            assert np.array_equal(found.mask(), official.annToMask(annotation).astype(bool))
        assert record.image.shape[:2] == found.size


def test_small_objects_are_left_out(tmp_path):
    picture(np.random.default_rng(0), (40, 60)).save(tmp_path / "a.png")
    masks = [np.zeros((40, 60), bool) for _ in range(2)]
    masks[0].reshape(-1)[:31], masks[1].reshape(-1)[:32] = True, True
    coco_file(tmp_path / "all.json", {"a.png": (40, 60)},
              [{"image_id": 1, "segmentation": compressed(mask)} for mask in masks])
    source = open_source(tmp_path)
    assert [found.area() for found in source[0].objects] == [32]
    assert [found.area() for found in source.record(0).objects] == [31, 32]


def test_lvis_names_pictures_by_address(tmp_path):
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).mkdir()
        picture(np.random.default_rng(0), (40, 60)).save(tmp_path / folder / f"{folder}.jpg")
    content = {"images": [{"id": k, "height": 40, "width": 60, "coco_url": f"http://images.org/{f}/{f}.jpg"}
                          for k, f in enumerate(("train2017", "val2017"))],
               "annotations": [{"image_id": k, "segmentation": [[0, 0, 30, 0, 30, 30]]} for k in range(2)]}
    (tmp_path / "lvis_v1.json").write_text(json.dumps(content))
    source = open_source(tmp_path / "lvis_v1.json")
    assert source.names() == ["train2017/train2017.jpg", "val2017/val2017.jpg"]
    assert all(record.image.shape == (40, 60, 3) for record in source)
    (tmp_path / "val2017" / "val2017.jpg").rename(tmp_path / "train2017" / "val2017.jpg")
    assert Coco(tmp_path / "lvis_v1.json", tmp_path / "train2017")[1].image.shape == (40, 60, 3)


def test_pictures_are_looked_for_nearby(root, tmp_path):
    path = root / "annotations" / "instances.json"
    (root / "images").rename(root / "train2017")
    assert len(open_source(path)[0].image)
    (root / "train2017").rename(root / "elsewhere")
    with pytest.raises(InputError, match="names pictures such as a.jpg, but there are none near"):
        open_source(path)
    assert len(open_source(path, images=root / "elsewhere")[0].image)
    with pytest.raises(InputError, match="none in"):
        open_source(path, images=root)


@pytest.mark.parametrize("content, message", [
    ("{", "broken JSON"), ('{"images": [], "annotations": {}}', "needs the lists"),
    ('{"images": [{}], "annotations": []}', "'id' is missing"),
    ('{"images": [{"id": 1, "height": 2, "width": 2}], "annotations": []}', "'coco_url' is missing"),
    ('{"images": [], "annotations": []}', "no picture with objects"),
    ('{"images": [1], "annotations": []}', "wrong form"),
    ('{"images": [{"id": 1, "file_name": "a", "height": "x", "width": 2}], "annotations": []}', "wrong form"),
    ('{"images": [], "annotations": [{"id": 3}]}', "'image_id' is missing")])
def test_broken_files(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Coco(tmp_path / "a.json")


def test_a_box_without_mask(root):
    path = root / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    for wrong in ([], None, {}, {"counts": "x"}, {"size": [1], "counts": "x"}, {"size": None, "counts": []}, 3):
        content["annotations"][0]["segmentation"] = wrong
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="no segmentation"):
            open_source(path)[0]


def test_is_coco(tmp_path):
    for text, want in (('{"images": [], "annotations": []}', True), ('[1]', False), ('{"items": []}', False),
                       (json.dumps({"images": ["x" * 70000], "annotations": []}), True),
                       (json.dumps({"annotations": ["x" * 70000], "images": []}), True),
                       ('{"image": {}, "annotations": []}', False), ('["images"]', False)):
        (tmp_path / "a.json").write_text(text)
        assert is_coco(tmp_path / "a.json") == want


def test_merged_polygons_of_one_object(root):
    record = open_source(root / "annotations" / "instances.json")[0]
    polygons = record.objects[1].polygons
    assert len(polygons) == 2
    merged = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 40, 60)))
    assert np.array_equal(record.objects[1].mask(), merged.astype(bool))
