"""Settings of automatic masks: the official generator's keywords and defaults, and three presets.

No preset: 32 x 32 points on the picture, as the official generator does unless told otherwise.
`fast`: 16 x 16 points. A quarter of the decoder's work; what is smaller than 1/16 of a side is hit by chance only.
`paper`: SA-1B's own (Segment Anything, appendix B): besides, 16 x 16 points on each of 4 crops and 8 x 8 on each of 16;
specks and pinholes removed, masks of 95 % of the picture dropped. Three times the decoder's work, 21 encodings.
`dense`: 32 x 32 points on the picture and on each of 4 crops, and lower thresholds: predicted IoU and stability of
small objects are low even where their masks are right. For many small objects (cells, cars from the air), at the price
of more masks that nobody asked for. 5 times the decoder's work, 5 encodings.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from samjax.errors import InputError

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
MAX_LAYERS = 5  # 1365 crops


@dataclass(frozen=True)
class Settings:
    """How `everything` samples a picture and what it keeps. Names and defaults are the official generator's.

    Raises InputError for values that make no sense.
    """

    points_per_side: int | None = 32  # a grid of n x n points on the picture; None: point_grids
    points_per_batch: int = 64  # points decoded in one call: memory for speed
    pred_iou_thresh: float = 0.88  # keep masks whose predicted IoU is above it; 0 keeps all
    stability_score_thresh: float = 0.95  # keep masks whose stability reaches it; 0 keeps all
    stability_score_offset: float = 1.0  # stability: IoU of the masks cut at logits +offset and -offset
    box_nms_thresh: float = 0.7  # of two masks in a crop whose boxes' IoU is above it, the less confident goes
    crop_n_layers: int = 0  # further layers of crops: 4 in the first, 16 in the second, ...
    crop_nms_thresh: float = 0.7  # the same between crops, where the smaller crop wins
    crop_overlap_ratio: float = 512 / 1500  # of the short side, in the first layer; half of it in the next
    crop_n_points_downscale_factor: int = 1  # layer i has points_per_side / factor^i points a side
    point_grids: Sequence[np.ndarray] | None = None  # instead: for each layer (n, 2) points x, y in 0..1
    min_mask_region_area: int = 0  # fill holes and drop islands of fewer pixels
    output_mode: str = "binary_mask"  # or "uncompressed_rle", "coco_rle"
    # Not in the official generator:
    max_mask_area_fraction: float = 1.0  # drop masks of this share of the picture or more (SA-1B: 0.95); 1 keeps all

    def __post_init__(self):
        self._check_numbers()
        if self.output_mode not in OUTPUT_MODES:
            raise InputError(f"output_mode {self.output_mode!r} is none of {', '.join(OUTPUT_MODES)}")
        if (self.points_per_side is None) == (self.point_grids is None):
            raise InputError("give either points_per_side or point_grids, the other None")
        if self.point_grids is not None:
            object.__setattr__(self, "point_grids", _grids(self.point_grids, self.crop_n_layers + 1))
        elif int(self.points_per_side / self.crop_n_points_downscale_factor**self.crop_n_layers) < 1:
            raise InputError(f"points_per_side {self.points_per_side} leaves no points in layer {self.crop_n_layers}: "
                             "give more, or a smaller crop_n_points_downscale_factor")

    def _check_numbers(self):
        whole = {"points_per_batch": (1, math.inf), "crop_n_layers": (0, MAX_LAYERS),
                 "min_mask_region_area": (0, math.inf), "crop_n_points_downscale_factor": (1, math.inf)}
        if self.points_per_side is not None:
            whole["points_per_side"] = (1, math.inf)
        # No model predicts more than a little over 1: what is far beyond, such as 88, was meant in percent.
        real = {"pred_iou_thresh": (0, 2), "stability_score_thresh": (0, 2),
                "stability_score_offset": (0, math.inf), "box_nms_thresh": (0, 1), "crop_nms_thresh": (0, 1),
                "crop_overlap_ratio": (0, 1), "max_mask_area_fraction": (0, 1)}
        for names, kinds, text in ((whole, (int, np.integer), "a whole number"),
                                   (real, (int, float, np.integer, np.floating), "a number")):
            for name, (low, high) in names.items():
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                    raise InputError(f"{name} must be {text}{_limits(low, high)}, not {value!r}")

    def grid(self, layer: int) -> np.ndarray:
        """The points of a layer's crops, float64 (n, 2), x before y, in 0..1 of the crop; x runs fastest."""
        if self.point_grids is not None:
            return self.point_grids[layer]
        n = int(self.points_per_side / self.crop_n_points_downscale_factor**layer)
        at = np.linspace(1 / (2 * n), 1 - 1 / (2 * n), n)
        return np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)


FAST = Settings(points_per_side=16)
PAPER = Settings(crop_n_layers=2, crop_n_points_downscale_factor=2, min_mask_region_area=100,
                 max_mask_area_fraction=0.95)
DENSE = Settings(crop_n_layers=1, pred_iou_thresh=0.7, stability_score_thresh=0.85)
PRESETS = {"fast": FAST, "paper": PAPER, "dense": DENSE}


def make_settings(preset: str | None = None, **values) -> Settings:
    """The default settings or a preset's, with `values` in place of some. Raises InputError, for unknown names too."""
    if preset is not None and preset not in PRESETS:
        raise InputError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    names = [field.name for field in fields(Settings)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise InputError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else
                                                            f"; known are {', '.join(names)}"))
    return replace(PRESETS.get(preset, Settings()), **values)


def to_dict(settings: Settings) -> dict:
    """A JSON-able dict; `Settings(**values)` reads it back."""
    grids = settings.point_grids
    plain = asdict(replace(settings, points_per_side=1, point_grids=None, crop_n_points_downscale_factor=1))
    return plain | {"points_per_side": settings.points_per_side,
                    "crop_n_points_downscale_factor": settings.crop_n_points_downscale_factor,
                    "point_grids": None if grids is None else [grid.tolist() for grid in grids]}


def _limits(low: float, high: float) -> str:
    return f" of {low:g} to {high:g}" if high < math.inf else f" of at least {low:g}"


def _grids(grids, layers: int) -> tuple[np.ndarray, ...]:
    try:
        arrays = tuple(np.asarray(grid, np.float64) for grid in grids)
    except (TypeError, ValueError):
        raise InputError("point_grids must be a list of arrays (n, 2)") from None
    if len(arrays) < layers:
        raise InputError(f"point_grids holds {len(arrays)} grids where crop_n_layers needs {layers}")
    for grid in arrays:
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
            raise InputError(f"a grid of points must have shape (n, 2), not {grid.shape}")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise InputError("a grid's points must lie in 0..1 (shares of the picture's width and height)")
    return arrays
