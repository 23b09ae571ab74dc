"""samjax.settings: the official defaults, the presets, and what is refused."""

import inspect
import json

import numpy as np
import pytest

from samjax.errors import InputError
from samjax.settings import DENSE, FAST, PAPER, Settings, make_settings, to_dict


@pytest.mark.torch
def test_names_and_defaults_are_the_official_generators():
    pytest.importorskip("torch")
    import torchvision_standin

    torchvision_standin.install()
    official = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    theirs = {name: p.default for name, p in inspect.signature(official).parameters.items() if name != "model"}
    ours = vars(Settings())
    assert ours == {**theirs, "max_mask_area_fraction": 1.0}


def test_a_preset_and_what_stands_in_place_of_its_values():
    assert make_settings() == Settings()
    assert make_settings("paper") == PAPER
    assert make_settings("fast", crop_n_layers=1) == Settings(points_per_side=16, crop_n_layers=1)
    points = lambda s: sum(4**i * len(s.grid(i)) for i in range(s.crop_n_layers + 1))
    assert [points(s) for s in (FAST, Settings(), PAPER, DENSE)] == [256, 1024, 3 * 1024, 5 * 1024]


def test_the_grid_is_pixel_centres_with_x_fastest():
    assert Settings(points_per_side=2).grid(0).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    third = Settings(points_per_side=33, crop_n_layers=1, crop_n_points_downscale_factor=2).grid(1)
    assert len(third) == 16**2 and third.dtype == np.float64


def test_point_grids_of_ones_own():
    grids = [[[0.5, 0.5]], [[0.1, 0.2], [1, 0]]]
    settings = Settings(points_per_side=None, point_grids=grids, crop_n_layers=1)
    assert settings.grid(1).tolist() == [[0.1, 0.2], [1, 0]]


@pytest.mark.parametrize("settings", [Settings(), PAPER, Settings(points_per_side=None, point_grids=[[[0.5, 0.5]]])])
def test_a_dict_gives_the_settings_back(settings):
    values = json.loads(json.dumps(to_dict(settings)))
    assert to_dict(Settings(**values)) == to_dict(settings)
    assert set(values) == set(vars(settings))


@pytest.mark.parametrize("values, message", [
    (dict(points_per_sid=3), "unknown setting 'points_per_sid'; did you mean 'points_per_side'?"),
    (dict(zebra=3), "unknown setting 'zebra'; known are points_per_side"),
    (dict(preset="quick"), "preset 'quick' is none of fast, paper, dense"),
    (dict(points_per_side=0), "points_per_side must be a whole number of at least 1, not 0"),
    (dict(points_per_side=2.5), "points_per_side must be a whole number"),
    (dict(points_per_batch=0), "points_per_batch must be"),
    (dict(points_per_batch=True), "points_per_batch must be"),
    (dict(pred_iou_thresh="high"), "pred_iou_thresh must be a number of 0 to 2, not 'high'"),
    (dict(pred_iou_thresh=float("nan")), "pred_iou_thresh must be a number"),
    (dict(stability_score_thresh=-0.5), "stability_score_thresh must be a number of 0 to 2, not -0.5"),
    (dict(pred_iou_thresh=88), "pred_iou_thresh must be a number of 0 to 2, not 88"),
    (dict(stability_score_offset=-1), "stability_score_offset must be a number of at least 0"),
    (dict(box_nms_thresh=1.5), "box_nms_thresh must be a number of 0 to 1, not 1.5"),
    (dict(crop_n_layers=6), "crop_n_layers must be a whole number of 0 to 5"),
    (dict(points_per_side=3, crop_n_layers=2, crop_n_points_downscale_factor=2), "leaves no points in layer 2"),
    (dict(point_grids=[[[0.5, 0.5]]]), "either points_per_side or point_grids"),
    (dict(points_per_side=None), "either points_per_side or point_grids"),
    (dict(points_per_side=None, point_grids=[[[0.5, 1.5]]]), "must lie in 0..1"),
    (dict(points_per_side=None, point_grids=[[0.5, 0.5]]), r"must have shape \(n, 2\), not \(2,\)"),
    (dict(points_per_side=None, point_grids=[[[0.5, 0.5]]], crop_n_layers=1),
     "holds 1 grids where crop_n_layers needs 2"),
    (dict(points_per_side=None, point_grids=3), "must be a list of arrays"),
    (dict(output_mode="png"), "output_mode 'png' is none of"),
    (dict(max_mask_area_fraction=2), "max_mask_area_fraction must be"),
])
def test_mistakes_are_named(values, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        make_settings(**values)
    assert "\n" not in str(caught.value)
