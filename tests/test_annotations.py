"""samjax.annotations: SA-1B and COCO files that pycocotools reads, label maps, overlays."""

import json

import numpy as np
import pytest
from PIL import Image

from samjax import rle
from samjax.annotations import MaskList, coco, label_map, overlay_all, sa1b, save_json
from samjax.draw import overlay, save_png
from samjax.errors import InputError

HW = 40, 60


@pytest.fixture
def records():
    """A large mask, one inside it, one apart; each in another form."""
    masks = np.zeros((3, *HW), bool)
    masks[0, 12:18, 20:30] = True
    masks[1, 5:35, 5:45] = True
    masks[2, 0:4, 50:60] = True
    counts = [rle.encode(mask) for mask in masks]
    forms = [masks[0], {"size": list(HW), "counts": counts[1].tolist()},
             {"size": list(HW), "counts": rle.compress(counts[2])}]
    return masks, [
        {"segmentation": form, "area": int(mask.sum()), "bbox": [1, 2, 3, 4], "predicted_iou": 0.9 + i / 100,
         "point_coords": [[1.5, 2.5]], "stability_score": 0.95, "crop_box": [0, 0, 60, 40]}
        for i, (form, mask) in enumerate(zip(forms, masks))]


def test_sa1b_holds_the_official_layout(records):
    masks, found = records
    value = json.loads(json.dumps(sa1b(found, HW, "sa_1.jpg", 1, first_id=7)))
    assert value["image"] == {"image_id": 1, "width": 60, "height": 40, "file_name": "sa_1.jpg"}
    assert [a["id"] for a in value["annotations"]] == [7, 8, 9]
    for annotation, mask, record in zip(value["annotations"], masks, found):
        assert set(annotation) == {"id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box",
                                   "point_coords"}
        assert isinstance(annotation["segmentation"]["counts"], str)
        assert (rle.to_mask(annotation["segmentation"]) == mask).all()
        assert annotation["predicted_iou"] == record["predicted_iou"]


def test_pycocotools_reads_the_coco_file(records, tmp_path):
    cocotools = pytest.importorskip("pycocotools.coco")
    masks, found = records
    pictures = [sa1b(found[:2], HW, "a.jpg"), sa1b([], HW, "empty.jpg"), sa1b(found[2:], HW, "b.jpg")]
    save_json(tmp_path / "all.json", coco(pictures))
    data = cocotools.COCO(tmp_path / "all.json")
    assert [data.imgs[i]["file_name"] for i in data.getImgIds()] == ["a.jpg", "empty.jpg", "b.jpg"]
    by_image = [[a["id"] for a in data.loadAnns(data.getAnnIds(imgIds=[i]))] for i in (1, 2, 3)]
    assert by_image == [[1, 2], [], [3]]
    for annotation, mask in zip(data.loadAnns([1, 2, 3]), masks):
        assert (data.annToMask(annotation) == mask).all()
        assert annotation["category_id"] == data.getCatIds()[0] and annotation["score"] == annotation["predicted_iou"]


def test_the_label_map_shows_the_smallest_mask(records, tmp_path):
    masks, found = records
    labels = label_map(found, HW)
    assert labels.dtype == np.uint16
    expected = np.where(masks[0], 1, np.where(masks[1], 2, np.where(masks[2], 3, 0)))
    assert (labels == expected).all()
    save_png(tmp_path / "labels.png", labels)
    assert (np.array(Image.open(tmp_path / "labels.png")) == expected).all()
    with pytest.raises(InputError, match="16-bit"):
        label_map(found * 30_000, HW)


def test_the_overlay_decodes_masks_one_at_a_time(records):
    masks, found = records
    image = np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8)
    assert (np.array(overlay_all(image, found)) == np.array(overlay(image, masks))).all()
    assert (np.array(overlay_all(image, [])) == image).all()
    with pytest.raises(ValueError, match="do not fit"):
        overlay_all(image[:-1], found)
    assert (MaskList(found)[2] == masks[2]).all() and len(MaskList(found)) == 3


def test_json_is_written_whole_or_not_at_all(tmp_path):
    save_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"a": [2, object()]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot write"):
        save_json(tmp_path / "no" / "a.json", {})
