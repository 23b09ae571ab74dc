"""What counts as an object in a mask picture."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from samjax.data import open_source
from samjax.data.labels import read_objects
from samjax.errors import InputError


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def masks(parts):
    return [part.mask() for part in parts]


@pytest.fixture
def ids():
    """Id 1 in two pieces that touch at a corner, id 2 in two apart, id 7 small."""
    out = np.zeros((20, 30), np.uint8)
    out[2:5, 2:5], out[5:8, 5:8] = 1, 1
    out[10:14, 2:6], out[10:14, 20:25] = 2, 2
    out[18, 28] = 7
    return out


def test_16_bit_pictures_hold_instances(tmp_path, ids):
    found = read_objects(write(tmp_path / "a.png", ids.astype(np.uint16) * 1000))
    assert [mask.tolist() for mask in masks(found)] == [(ids == i).tolist() for i in (1, 2, 7)]
    assert [part.area() for part in found] == [18, 36, 1]
    for part in found:
        assert part.counts()[1::2].sum() == part.area() and part.counts().sum() == ids.size


def test_8_bit_pictures_hold_classes_in_parts(tmp_path, ids):
    found = masks(read_objects(write(tmp_path / "a.png", ids)))
    left, right = ids == 2, ids == 2
    left[:, 15:], right[:, :15] = False, False
    assert [mask.tolist() for mask in found] == [m.tolist() for m in (ids == 1, left, right, ids == 7)]


def test_kind_can_be_said(tmp_path, ids):
    assert len(read_objects(write(tmp_path / "a.png", ids), "instances")) == 3
    assert len(read_objects(write(tmp_path / "b.png", ids.astype(np.uint16)), "classes")) == 4


def test_instances_from_id_1_without_background(tmp_path):
    ids = np.repeat(np.array([[3, 9]], np.uint16), 4, axis=0)
    assert [mask.tolist() for mask in masks(read_objects(write(tmp_path / "a.png", ids)))] == \
        [(ids == 3).tolist(), (ids == 9).tolist()]


def test_colours_are_ids(tmp_path, ids):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], *[[0] * 3] * 4, [0, 0, 200]], np.uint8)[ids]
    assert len(read_objects(write(tmp_path / "a.png", colours))) == 4
    grey = np.repeat(ids[..., None], 3, axis=-1)
    assert len(read_objects(write(tmp_path / "b.png", grey))) == 4


def test_transparent_is_background(tmp_path):
    rgba = np.zeros((10, 10, 4), np.uint8)
    rgba[2:5, 2:5] = 255
    rgba[6:9, 6:9, 0] = 255  # red, but transparent
    assert [part.area() for part in read_objects(write(tmp_path / "a.png", rgba))] == [9]


def test_palette_indices_are_ids_and_255_is_void(tmp_path, ids):
    image = Image.fromarray(np.where(ids == 7, 255, ids).astype(np.uint8))
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P" and len(read_objects(tmp_path / "a.png")) == 3
    image = Image.fromarray(np.where(ids == 7, 255, 0).astype(np.uint8))
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "b.png")
    assert len(read_objects(tmp_path / "b.png")) == 1  # nothing but void: an object after all


def test_soft_edges_and_jpeg_noise_are_no_classes(tmp_path):
    y, x = np.mgrid[:60, :60]
    soft = np.clip(255 * (20 - np.hypot(y - 30, x - 30)) / 10 + 128, 0, 255).astype(np.uint8)
    want = (soft >= 128).sum()
    assert [part.area() for part in read_objects(write(tmp_path / "a.png", soft))] == [want]
    hard = (soft >= 128).astype(np.uint8) * 255
    found = read_objects(write(tmp_path / "a.jpg", hard, quality=70))
    assert len(found) == 1 and abs(found[0].area() - want) < 10


def test_255_is_an_id_among_many(tmp_path):
    ids = np.repeat(np.arange(1, 62, dtype=np.uint8), 40).reshape(61, 40)
    ids[ids == 61] = 255
    assert len(read_objects(write(tmp_path / "a.png", ids), "instances")) == 61
    assert len(read_objects(write(tmp_path / "a.png", ids), "classes")) == 60  # where it is void
    image = Image.fromarray(ids)
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "b.png")
    assert len(read_objects(tmp_path / "b.png", "instances")) == 61


def test_bits_and_empty(tmp_path):
    assert len(read_objects(write(tmp_path / "a.png", np.eye(9, dtype=bool)))) == 1  # 8-connected
    assert read_objects(write(tmp_path / "b.png", np.zeros((9, 9), np.uint8))) == []
    assert read_objects(write(tmp_path / "c.png", np.zeros((9, 9), np.uint16))) == []


def test_fractions_are_no_ids(tmp_path):
    with pytest.raises(InputError, match="whole numbers"):
        read_objects(write(tmp_path / "a.tif", np.full((4, 4), 0.5, np.float32)))


@pytest.mark.parametrize("values, objects", [
    ([1, 2, 255], 2), ([1, 255], 1), ([20, 150, 255], 2), ([255], 1), ([1, 2], 2),
    ([128, 255], 2), ([85, 170, 255], 3), ([3, 40, 230, 255], 4)], ids=str)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB"])
def test_255_is_void_beside_numbered_classes(tmp_path, mode, values, objects):
    grey = np.zeros((20, 60), np.uint8)
    for k, value in enumerate(values):
        grey[5:15, 10 * k : 10 * k + 8] = value
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    found = masks(read_objects(tmp_path / "a.png"))
    assert [mask.tolist() for mask in found] == [(grey == value).tolist() for value in values[:objects]]


def folder(root, *pictures):
    """A data set of these mask pictures, each a list of the values in it."""
    for number, values in enumerate(pictures):
        grey = np.zeros((20, 60), np.uint8)
        for k, value in enumerate(values):
            grey[5:15, 10 * k : 10 * k + 8] = value
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey).save(root / kind / f"{number:03d}.png")
    return [len(record.objects) for record in open_source(root)]


def test_255_is_what_it_is_in_the_other_pictures(tmp_path):
    assert folder(tmp_path / "binary", [255], [], [255]) == [1, 0, 1]
    assert folder(tmp_path / "voc", [1, 255], [255], [3]) == [1, 0, 1]
    assert folder(tmp_path / "apart", [255], [1], [2]) == [0, 1, 1]
    assert folder(tmp_path / "two ways", [255], [1], [1]) == [1, 1, 1]  # 0 and 1 here, 0 and 255 there
    assert folder(tmp_path / "grey", [128, 255], [255], [128]) == [2, 1, 1]
    assert folder(tmp_path / "many", [255], *[[]] * 150, [1, 255], [2, 255], [2, 255])[-4:] == [0, 1, 1, 1]
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "voc")))
    assert [len(record.objects) for record in source] == [1, 0, 1]
    (tmp_path / "voc" / "masks" / "002.png").write_bytes(b"damaged")
    assert len(open_source(tmp_path / "voc")[1].objects) == 0
    meta = {"items": [{"image": f"images/{k:03d}.png", "mask": f"masks/{k:03d}.png"} for k in range(2)]}
    (tmp_path / "voc" / "meta.json").write_text(json.dumps(meta))
    assert [len(record.objects) for record in open_source(tmp_path / "voc")] == [1, 0]
    assert len(open_source(tmp_path / "voc", masks="instances")[1].objects) == 1
