"""Which layout a path has, and how its pictures are split."""

import json
import os
import shutil

import numpy as np
import pytest
from made import coco_file, compressed, instance_folder, members, picture, sa1b_folder, shapes
from PIL import Image

from samjax.data import open_source
from samjax.data.sources import Joined, NoSplit, hash_split
from samjax.errors import InputError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path)


def coco_of(path, names, hw=(40, 60)):
    rng = np.random.default_rng(0)
    coco_file(path, dict.fromkeys(names, hw), [{"image_id": k + 1, "segmentation": compressed(shapes(rng, hw, 1)[0])}
                                               for k in range(len(names))])
    for name in names:
        save(path.parent / name, picture(rng, hw))


def test_instance_folder(tmp_path):
    source = open_source(instance_folder(tmp_path / "a"))
    assert source.names() == [f"images/{k}.png" for k in range(4)]
    ids = np.asarray(Image.open(tmp_path / "a" / "masks" / "2.png"))
    want = [ids == i for i in np.unique(ids)[1:] if (ids == i).sum() >= 32]
    assert all(np.array_equal(a.mask(), b) for a, b in zip(source[2].objects, want, strict=True))
    assert len(open_source(tmp_path / "a", masks="classes").record(2).objects) >= len(want)


def test_names_of_masks(tmp_path):
    rng, mask = np.random.default_rng(0), np.zeros((40, 60), np.uint8)
    mask[5:15, 5:15] = 1
    for name in ("same", "ending", "many", "folder", "none", "deep/er", "a_1"):
        save(tmp_path / "images" / f"{name}.jpg", picture(rng, (40, 60)))
    for name in ("same", "ending_mask", "many_0", "many_1", "many_mask_2", "folder/x", "folder/y", "deep/er", "a_1",
                 "odd"):
        save(tmp_path / "masks" / f"{name}.png", mask)
    source = open_source(tmp_path)
    items = {name: masks for name, _, masks in source.items}
    assert items == {"images/same.jpg": ["masks/same.png"], "images/ending.jpg": ["masks/ending_mask.png"],
                     "images/many.jpg": [f"masks/many_{k}.png" for k in ("0", "1", "mask_2")],
                     "images/folder.jpg": ["masks/folder/x.png", "masks/folder/y.png"],
                     "images/deep/er.jpg": ["masks/deep/er.png"], "images/a_1.jpg": ["masks/a_1.png"]}
    assert source.found == [("images/none.jpg", "has no mask in masks"), ("masks/odd.png", "has no picture in images")]
    assert [len(source[i].objects) for i in range(len(source))] == [len(masks) for masks in items.values()]


def test_folders_called_train_and_val(tmp_path):
    instance_folder(tmp_path / "train", pictures=3)
    instance_folder(tmp_path / "valid", seed=1, pictures=2)
    assert len(open_source(tmp_path)) == 5
    assert open_source(tmp_path, "train").names() == [f"train/images/{k}.png" for k in range(3)]
    assert open_source(tmp_path, "val").names() == ["valid/images/0.png", "valid/images/1.png"]
    with pytest.raises(InputError, match="no split 'test': its splits are train, val"):
        open_source(tmp_path, "test")


def test_split_below_images(tmp_path):
    for part in ("train", "val"):
        made = instance_folder(tmp_path / "made" / part, pictures=2)
        for kind in ("images", "masks"):
            shutil.copytree(made / kind, tmp_path / "data" / kind / part)
    assert open_source(tmp_path / "data", "val").names() == ["images/val/0.png", "images/val/1.png"]


def test_other_layouts_in_train_and_val(tmp_path):
    for part in ("train", "val"):
        sa1b_folder(tmp_path / part, members(pictures=2))
    whole = open_source(tmp_path)
    assert whole.names() == [f"{part}/sa_{k}.jpg" for part in ("train", "val") for k in range(2)]
    assert whole.names() == [record.name for record in whole]
    assert len(open_source(tmp_path, "val")) == 2
    with pytest.raises(InputError, match="no split 'test'"):
        open_source(tmp_path, "test")


def test_coco_folders(tmp_path):
    for part in ("train", "valid"):
        coco_of(tmp_path / "a" / part / "_annotations.coco.json", ["1.jpg", "2.jpg"])
    assert open_source(tmp_path / "a", "val").names() == ["1.jpg", "2.jpg"]
    assert open_source(tmp_path / "a").names() == ["train/1.jpg", "train/2.jpg", "valid/1.jpg", "valid/2.jpg"]
    for split in ("train", "val"):
        coco_of(tmp_path / "b" / f"{split}2017" / "tmp.json", [f"{split}.jpg"])
        (tmp_path / "b" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "b" / f"{split}2017" / "tmp.json").rename(
            tmp_path / "b" / "annotations" / f"instances_{split}2017.json")
    assert open_source(tmp_path / "b", "val").names() == ["val.jpg"]
    assert open_source(tmp_path / "b").names() == ["train.jpg", "val.jpg"]
    with pytest.raises(InputError, match="no split 'test'"):
        open_source(tmp_path / "b", "test")


def test_meta_json(tmp_path):
    instance_folder(tmp_path)
    items = [{"image": f"images/{k}.png", "mask": [f"masks/{k}.png"] if k else f"masks/{k}.png",
              "split": "train" if k else "val"} for k in range(4)]
    (tmp_path / "meta.json").write_text(json.dumps({"items": items}))
    assert open_source(tmp_path, "val").names() == ["images/0.png"]
    assert len(open_source(tmp_path, "train")) == 3 and len(open_source(tmp_path)) == 4
    with pytest.raises(InputError, match="no split 'test': its splits are train, val"):
        open_source(tmp_path, "test")
    for content, message in (("{", "broken JSON"), ('{"items": [{}]}', "needs 'image'"), ('{"items": []}', "no items")):
        (tmp_path / "meta.json").write_text(content)
        with pytest.raises(InputError, match=message):
            open_source(tmp_path)


def test_meta_json_with_coco(tmp_path):
    coco_of(tmp_path / "images" / "instances.json", ["b.jpg", "a.jpg"])
    (tmp_path / "meta.json").write_text(json.dumps({"coco_json": "images/instances.json", "items": [
        {"image": f"images/{name}.jpg", "mask": "masks/x.png", "split": "val"} for name in "abc"]}))
    source = open_source(tmp_path, "val")
    assert source.names() == ["images/a.jpg", "images/b.jpg"] == [record.name for record in source]
    assert source.found == [("images/c.jpg", "has no objects")]


def test_hash_split_is_stable_and_complete():
    names = [f"{k}.jpg" for k in range(1000)]
    train, val = (hash_split(names, split) for split in ("train", "val"))
    assert sorted([*train, *val]) == list(range(1000)) and 160 < len(val) < 240
    more = hash_split([*names, *(f"new{k}.jpg" for k in range(500))], "val")
    assert [i for i in more if i < 1000] == list(val)  # others coming changes nothing
    for n in range(2, 12):
        assert all(len(hash_split(names[:n], split)) for split in ("train", "val"))


def test_split_without_convention(tmp_path):
    instance_folder(tmp_path, pictures=12)
    train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
    assert set(train.names()) | set(val.names()) == set(open_source(tmp_path).names())
    assert not set(train.names()) & set(val.names()) and len(val)
    with pytest.raises(InputError, match="does not say how it is split"):
        open_source(tmp_path, "test")


def test_several_paths_are_one_source(tmp_path):
    paths = [os.fspath(instance_folder(tmp_path / name, pictures=2)) for name in "ab"]
    source = open_source([paths[0], paths[1] + "/"])
    assert source.names() == [f"{p}/images/{k}.png" for p in "ab" for k in range(2)] == [r.name for r in source]
    assert isinstance(source, Joined) and len(source.select([3, 0])) == 2
    assert source.select([3, 0]).names() == ["b/images/1.png", "a/images/0.png"]
    with pytest.raises(IndexError):
        source[4]


def test_what_is_wrong_is_said(tmp_path):
    def fails(path, message, **options):
        with pytest.raises(InputError, match=message) as caught:
            open_source(path, **options)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "nothing", "no such file or folder")
    fails(f"{tmp_path}/*.tar", "no file has such a name")
    fails(tmp_path, "holds nothing; known are")
    (tmp_path / "a.txt").write_text("x")
    fails(tmp_path, "it holds a.txt; known are")
    fails(tmp_path / "a.txt", "is no data set")
    (tmp_path / "a.json").write_text('{"image": {}, "annotations": []}')
    fails(tmp_path / "a.json", "not a COCO file")
    fails(tmp_path, "none of auto, instances, classes", masks="ids")
    fails([], "no data were given")
    for kind in ("images", "masks"):
        save(tmp_path / kind / f"{kind}.png", np.ones((9, 9), np.uint8))
    fails(tmp_path, "no picture has a mask of its name")


REAL = ("busi", "camo_sample", "chase_db1", "cleargrasp", "coco128seg", "crackforest", "ct_organs", "cwfid", "davis",
        "dsb2018", "isbi_em", "kolektorsdd", "kvasir_polyp", "magnetic_tile", "nwpu_vhr10", "ortho_buildings")


@pytest.mark.parametrize("name", REAL)
def test_objects_of_real_data_sets(reference, name):
    """Number, order and area of every object that the official model was scored on."""
    if not (reference / "datasets").is_dir():
        pytest.skip("the reference folder has no datasets/")
    rows = json.loads((reference / "golden" / "scores_val.json").read_text())[name]["rows"]
    source = open_source(reference / "datasets" / name, "val")
    found = [(record.name, mask.area()) for record in source for mask in record.objects]
    assert found == [(row[0], row[2]) for row in rows]


def test_patterns_keep_the_splits_that_are_named(tmp_path):
    """Annotation files say by their names, folders by theirs; what says nothing is split by hash."""
    coco_of(tmp_path / "coco" / "instances_train2017.json", [f"t{k}.png" for k in range(3)])
    coco_of(tmp_path / "coco" / "instances_val2017.json", ["v0.png", "v1.png"])
    pattern = str(tmp_path / "coco" / "*.json")
    assert open_source(pattern, "train").names() == ["t0.png", "t1.png", "t2.png"]
    assert open_source(pattern, "val").names() == ["v0.png", "v1.png"]
    assert len(open_source(pattern)) == 5
    with pytest.raises(NoSplit, match="its splits are train, val") as caught:
        open_source(pattern, "test")
    assert caught.value.known == ("train", "val")
    instance_folder(tmp_path / "sets" / "a" / "train", pictures=3)
    instance_folder(tmp_path / "sets" / "a" / "val", seed=1, pictures=2)
    instance_folder(tmp_path / "sets" / "b", seed=2, pictures=10)
    parts = [open_source(str(tmp_path / "sets" / "*"), split) for split in ("train", "val")]
    assert sum(map(len, parts)) == 15 and not set(parts[0].names()) & set(parts[1].names())
    assert len(parts[0]) == 3 + len(open_source(tmp_path / "sets" / "b", "train"))
    with pytest.raises(NoSplit):
        open_source(tmp_path / "sets" / "b", "train", by_hash=False)
