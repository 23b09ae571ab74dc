"""samjax.tiling: an oracle in the model's place, so that what is found must be the known shapes, whatever the tiles."""

import dataclasses
import itertools
import json
import os

import numpy as np
import pytest
from conftest import SMALL_VIT

import samjax
from samjax import annotations, rle, tiling
from samjax.predict import Sam
from samjax.resample import bilinear
from samjax.settings import Settings

CONFIG = dataclasses.replace(SMALL_VIT, image_size=(256, 256))
SAM = Sam(CONFIG, {})
H, W, CELL = 600, 828, 4
KEYS = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]
# Each pixel says where it lies, so that the oracle knows a window by its first one.
PICTURE = np.stack([np.broadcast_to((np.arange(W) // CELL).astype(np.uint8), (H, W)),
                    np.broadcast_to((np.arange(H) // CELL).astype(np.uint8)[:, None], (H, W)),
                    np.full((H, W), 9, np.uint8)], axis=-1)


def shapes_at_random(seed, n=40):
    """(x, y, radius, is a disc) apart from each other, of 28 to 340 px a side; some reach over the picture's edge."""
    random = np.random.default_rng(seed)
    found = []
    for radius in [random.uniform(130, 170), *np.sort(14 * 6 ** random.random(n - 1))[::-1]]:
        for x, y in random.uniform(20, (W - 20, H - 20), (300, 2)):
            if all(max(abs(x - a), abs(y - b)) > radius + r + 14 for a, b, r, _ in found):
                found.append((x, y, radius, bool(random.integers(2))))
                break
    return found


def field(shape, x, y):
    """Positive inside the shape, in pixels from its outline."""
    a, b, radius, disc = shape
    x, y = np.abs(x - a), np.abs(y - b)
    return radius - (np.hypot(x, y) if disc else np.maximum(x, y))


def expected_mask(shape):
    """The field at the cells' centres, interpolated to the picture."""
    axes = []
    for n in (H, W):
        cells = n // CELL + 64
        band = bilinear(cells, cells * CELL)
        matrix = np.zeros((n, cells))
        np.add.at(matrix, (np.arange(n)[:, None], band.index[:n]), band.weight[:n])
        axes.append((matrix, (np.arange(cells) + 0.5) * CELL))
    (rows, y), (cols, x) = axes
    return rows @ field(shape, x[None], y[:, None]) @ cols.T > 0


class Oracle:
    """Segments the shapes: of a point the shape it lies on, a disc around it, and the shape with low confidence."""

    def __init__(self, monkeypatch, shapes):
        self.shapes, self.encoded, self.asked = shapes, [], []
        monkeypatch.setattr(tiling, "_encode", self.encode)
        monkeypatch.setattr(tiling, "_decode", self.decode)

    def encode(self, config, params, frames, valid):
        self.encoded += valid.tolist()
        return frames[:, :1, :1]

    def decode(self, config, params, features, points, count):
        corner = features[0, 0, 0, :2].astype(int) * CELL
        at = np.arange(64) * CELL + CELL / 2
        x, y = corner[0] + at[None], corner[1] + at[:, None]
        logits, iou = np.zeros((len(points), 3, 64, 64), np.float32), np.zeros((len(points), 3), np.float32)
        for i, point in enumerate(points[:count] + corner):
            self.asked.append(tuple(point))
            for k, shape in enumerate(self.shapes):
                if field(shape, *point) > 2:
                    logits[i] = 100 * field(shape, x, y)
                    iou[i] = 0.9 + k / 1000, 0.3, 0.5
        return logits, iou


def found_in(records):
    return [rle.to_mask(record["segmentation"]) for record in records]


@pytest.mark.parametrize("seed", range(2))
def test_every_shape_is_found_once_whatever_the_tiles(monkeypatch, seed):
    shapes = shapes_at_random(seed)
    expected = [expected_mask(shape) for shape in shapes]
    sizes = [mask.sum() ** 0.5 for mask in expected]
    assert len(shapes) > 20 and max(sizes) > 256 > min(sizes)
    for tile in (128, 160, 256):
        Oracle(monkeypatch, shapes)
        records = tiling.everything(SAM, PICTURE, tile=tile, halo=32, spacing=16)
        assert len(records) == len(shapes)
        for record, shape, mask in zip(records, reversed(shapes), reversed(expected)):  # the most confident first
            np.testing.assert_array_equal(rle.to_mask(record["segmentation"]), mask, err_msg=str((tile, shape)))
            assert list(record) == KEYS and record["area"] == mask.sum()
            ys, xs = np.nonzero(mask)
            assert record["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
            assert all(field(shape, *point) > 0 for point in record["point_coords"])
            assert record["stability_score"] > 0.9 and abs(record["predicted_iou"] - 0.9) < 0.1


@pytest.mark.parametrize("tile", [128, 176, 256])
def test_each_point_of_the_lattice_is_asked_once(monkeypatch, tile):
    oracle = Oracle(monkeypatch, [])
    assert tiling.everything(SAM, PICTURE, tile=tile, halo=32, spacing=20) == []
    lattice = itertools.product(np.arange(10, W, 20.0), np.arange(10, H, 20.0))
    assert sorted(oracle.asked) == sorted(lattice)
    layout = tiling.plan(SAM, (H, W), Settings(), tile, 32, 1.0, 20)
    owners = np.zeros((H, W), int)
    for (x0, y0, x1, y1), (left, top, right, bottom) in zip(layout.cores, layout.windows):
        owners[y0:y1, x0:x1] += 1
        assert right - left <= tile >= bottom - top
        assert (x0 - left >= 32 or left == 0) and (right - x1 >= 32 or right == W)
        assert (y0 - top >= 32 or top == 0) and (bottom - y1 >= 32 or bottom == H)
        assert left % 16 == top % 16 == 0
    assert (owners == 1).all()


def test_a_small_picture_is_one_window(monkeypatch):
    oracle = Oracle(monkeypatch, [(60, 40, 20, True)])
    records = tiling.everything(SAM, PICTURE[:80, :120], tile=128, halo=32, spacing=16)
    assert oracle.encoded == [[80, 120]] and records[0]["crop_box"] == [0, 0, 120, 80]
    np.testing.assert_array_equal(found_in(records)[0], expected_mask((60, 40, 20, True))[:80, :120])


def test_windows_of_one_colour_are_skipped(monkeypatch):
    picture = np.zeros_like(PICTURE)
    picture[200:400, 300:500] = PICTURE[200:400, 300:500]
    oracle = Oracle(monkeypatch, [])
    tiling.everything(SAM, picture, tile=128, halo=32, spacing=30)
    assert 0 < len(oracle.encoded) < 30
    done = []
    tiling.everything(SAM, picture * 0, tile=128, halo=32, spacing=30, progress=lambda *counts: done.append(counts))
    assert done == [(i, len(done)) for i in range(1, len(done) + 1)] and len(done) > 80


def test_what_is_cut_and_not_continued_is_left_out(monkeypatch):
    """A disc of which nothing is found to the right of x = 128."""
    oracle = Oracle(monkeypatch, [(128, 200, 90, True)])
    decode = oracle.decode

    def blind(config, params, features, points, count):
        return decode(config, params, features, points, count if features[0, 0, 0, 0] == 0 else 0)

    monkeypatch.setattr(tiling, "_decode", blind)
    assert tiling.everything(SAM, PICTURE, tile=128, halo=32, spacing=16) == []


def test_what_seams_cut_is_seen_whole_in_a_window_of_its_own(monkeypatch):
    """A disc over the corner of four windows, of whose parts the model makes less than there is: they do not agree."""
    disc, tile = (400, 300, 80, True), 256
    oracle = Oracle(monkeypatch, [disc])
    decode = oracle.decode

    def poor(config, params, features, points, count):
        logits, iou = decode(config, params, features, points, count)
        corner = features[0, 0, 0, :2].astype(int) * CELL
        if any(at - 80 < low + 8 or at + 80 > low + tile - 8 for at, low in zip(disc, corner)):
            logits[:, :, :, int(corner[0] // 64 % 2)::2] = -100  # stripes that differ from window to window
        return logits, iou

    monkeypatch.setattr(tiling, "_decode", poor)
    first = len(tiling.plan(SAM, (H, W), Settings(), tile, 32, 1.0, 16).windows)
    (record,) = tiling.everything(SAM, PICTURE, tile=tile, halo=32, spacing=16)
    np.testing.assert_array_equal(rle.to_mask(record["segmentation"]), expected_mask(disc))
    assert len(oracle.encoded) == first + 1
    x, y, w, h = record["crop_box"]
    assert (w, h) == (tile, tile) and x < 320 and y < 220 and x + w > 480 and y + h > 380


def test_settings_filter_and_clean(monkeypatch):
    shapes = shapes_at_random(5, 12)
    masks = [expected_mask(shape) for shape in shapes]
    how = dict(tile=192, halo=32, spacing=16)

    def found(**values):
        Oracle(monkeypatch, shapes)
        return tiling.everything(SAM, PICTURE, Settings(**values), **how)

    assert len(found(pred_iou_thresh=0.905)) == len(shapes) - 6
    assert all(record["segmentation"].dtype == bool for record in found())
    limit = sorted(mask.mean() for mask in masks)[-2]
    assert len(found(max_mask_area_fraction=float(limit))) == len(shapes) - 2
    Oracle(monkeypatch, shapes)
    by_name = tiling.everything(SAM, PICTURE, pred_iou_thresh=0.905, **how)
    assert len(by_name) == len(shapes) - 6 and isinstance(by_name[0]["segmentation"]["counts"], str)
    assert isinstance(found(output_mode="uncompressed_rle")[0]["segmentation"]["counts"], list)


def test_specks_are_removed(monkeypatch):
    shapes = shapes_at_random(5, 8)
    decode = Oracle(monkeypatch, shapes).decode

    def speckled(*args):
        logits, iou = decode(*args)
        logits[:, :, 5, 5] = np.where(iou > 0.6, 1e5, logits[:, :, 5, 5])
        return logits, iou

    monkeypatch.setattr(tiling, "_decode", speckled)
    boxes = [tiling.everything(SAM, PICTURE, Settings(min_mask_region_area=least), tile=256, halo=32, spacing=16)
             for least in (0, 100)]
    for record, shape in zip(boxes[1], reversed(shapes)):
        np.testing.assert_array_equal(record["segmentation"], expected_mask(shape))
    assert len(boxes[1]) == 8 and {str(r["bbox"]) for r in boxes[0]} != {str(r["bbox"]) for r in boxes[1]}


def test_sa1b_is_written_one_record_after_the_other(monkeypatch, tmp_path):
    Oracle(monkeypatch, shapes_at_random(1))
    records = tiling.everything(SAM, PICTURE, tile=192, halo=32, spacing=16)
    Oracle(monkeypatch, shapes_at_random(1))
    stream = tiling.records(SAM, PICTURE, tile=192, halo=32, spacing=16)
    assert tiling.save_sa1b(tmp_path / "a.json", stream, (H, W), "a.tif", 7) == len(records) > 20
    assert json.loads((tmp_path / "a.json").read_text()) == annotations.sa1b(records, (H, W), "a.tif", 7)
    assert tiling.save_sa1b(tmp_path / "b.json", [], (H, W), "a.tif") == 0
    assert json.loads((tmp_path / "b.json").read_text())["annotations"] == []
    with pytest.raises(samjax.InputError, match="cannot write"):
        tiling.save_sa1b(tmp_path / "none" / "a.json", records, (H, W), "a.tif")
    with pytest.raises(ZeroDivisionError):
        tiling.save_sa1b(tmp_path / "a.json", (1 / (1 - i) and r for i, r in enumerate(records)), (H, W), "x")
    assert json.loads((tmp_path / "a.json").read_text())["image"]["file_name"] == "a.tif"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_mistakes_are_named():
    def fails(match, settings=None, **how):
        with pytest.raises(samjax.InputError, match=match):
            tiling.everything(SAM, PICTURE, settings, **how)

    fails("a tile of 300 px at scale 1 does not fit the model's frame of 256 px: give a tile of at most 256", tile=300)
    fails("scale of at most 0.5", tile=512)
    fails("tile must be a number above 0", tile=0)
    fails("scale must be a number above 0, not nan", tile=128, scale=float("nan"))
    fails("halo of 16 px is less than the spacing of points, 20 px", tile=128, halo=16, spacing=20)
    fails("leaves too little between halos", tile=128, halo=60, spacing=40)
    fails("crops within tiles", Settings(crop_n_layers=1), tile=128)
    fails("crops within tiles", preset="dense", tile=128)
    fails("unknown setting 'points_per_sides'; did you mean 'points_per_side'", points_per_sides=8)
    fails("give settings, or preset, points_per_side by name", Settings(), preset="fast", points_per_side=8)
    fails("give its spacing", Settings(points_per_side=None, point_grids=[[[0.5, 0.5]]]), tile=128)
    fails("agreement must be", tile=128, halo=32, spacing=20, agreement=0)
    with pytest.raises(samjax.InputError, match="no such file"):
        tiling.everything(SAM, "nowhere.tif")


@pytest.mark.skipif(not os.environ.get("SAMJAX_THOROUGH"), reason="SAMJAX_THOROUGH=1 asks for it")
@pytest.mark.slow
@pytest.mark.weights
def test_the_real_model_finds_the_same_in_tiles_of_two_sizes(mobile_sam):
    """Six shapes on grain, some on seams: found once each, in tiles of 384 and 512 px."""
    y, x = np.mgrid[:640, :704]
    random = np.random.default_rng(0)
    picture = np.full((640, 704, 3), (150, 140, 118), np.float32)
    shapes = [(120, 130, 60, True), (330, 250, 90, False), (560, 120, 45, True), (600, 480, 80, True),
              (200, 480, 70, False), (420, 520, 30, True)]
    for i, shape in enumerate(shapes):
        picture[field(shape, x, y) > 0] = [(200, 70, 60), (235, 230, 220), (50, 130, 200)][i % 3]
    picture = np.clip(picture + random.normal(0, 5, picture.shape), 0, 255).astype(np.uint8)
    for tile in (384, 512):
        records = tiling.everything(mobile_sam, picture, tile=tile, halo=96, spacing=72, scale=1.5)
        masks = found_in(records)
        for shape in shapes:
            truth = field(shape, x, y) > 0
            ious = sorted(((mask & truth).sum() / (mask | truth).sum() for mask in masks), reverse=True)
            assert ious[0] > 0.9 and (len(ious) == 1 or ious[1] < 0.5), (tile, shape, ious[:3])
