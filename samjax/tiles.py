"""How a huge picture is gone through: overlapping windows at one scale, one lattice of points. No JAX."""

import math
from typing import NamedTuple

import numpy as np

from samjax.errors import InputError
from samjax.settings import Settings

Box = tuple[int, int, int, int]
PATCH = 16  # encoder pixels: windows start at multiples, so that an object lies alike in all that see it
OPEN = ("tile", "halo", "spacing")  # follow from the other numbers where they are None


class Plan(NamedTuple):
    """How a picture is gone through. Boxes are x0, y0, x1, y1, exclusive; cores part the picture without overlap."""

    windows: list[Box]
    cores: list[Box]
    halo: int
    scale: float
    spacing: float

    def points(self, index: int) -> np.ndarray:
        """The points (n, 2), x before y, that are decoded in a window: (i + 0.5) * spacing, those in its core."""
        x0, y0, x1, y1 = self.cores[index]
        x, y = (np.arange(math.ceil(low / self.spacing - 0.5), math.ceil(high / self.spacing - 0.5)) for low, high
                in ((x0, x1), (y0, y1)))
        return (np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) + 0.5) * self.spacing


class Tiling(NamedTuple):
    """The numbers of a tiling, as `samjax.tiling.everything` explains them. A tile of None fills the model's frame."""

    tile: int | None = 1024
    halo: int | None = None
    scale: float = 1.0
    spacing: float | None = None
    agreement: float = 0.6

    def check(self, settings: Settings) -> None:
        """Raises InputError for what no model and no picture could mend."""
        for name, value in self._asdict().items():
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not (number and 0 < value < math.inf) and not (value is None and name in OPEN):
                raise InputError(f"{name} must be a number above 0, not {value!r}")
        if self.agreement > 1:
            raise InputError(f"agreement must be a number of 0 to 1, not {self.agreement!r}")
        if settings.crop_n_layers:
            raise InputError("crops within tiles are not supported: for smaller objects give a larger scale")
        if self.spacing is None and settings.points_per_side is None:
            raise InputError("a huge picture has one lattice of points: give its spacing in pixels, no point_grids")

    def resolved(self, frame: int, settings: Settings) -> "Tiling":
        """With the numbers that were left out, for a model whose frame has that many pixels a side.

        Raises InputError for numbers that do not fit together.
        """
        self.check(settings)
        tile = max(1, int(frame / self.scale)) if self.tile is None else self.tile
        halo = int(tile // 8 if self.halo is None else self.halo)
        spacing = frame / settings.points_per_side / self.scale if self.spacing is None else self.spacing
        if round(tile * self.scale) > frame:
            raise InputError(f"a tile of {tile} px at scale {self.scale:g} does not fit the model's frame of {frame} "
                             f"px: give a tile of at most {int(frame / self.scale)} px, or a scale of at most "
                             f"{frame / tile:.4g}")
        if not spacing <= halo:
            raise InputError(f"a halo of {halo} px is less than the spacing of points, {spacing:g} px: objects that "
                             "are cut would be missed in the next tile; give a larger halo or more points")
        whole, core, _ = _steps(tile, halo, self.scale)
        if whole < 1 or core < spacing:
            raise InputError(f"a tile of {tile} px leaves too little between halos of {halo} px: give a larger tile "
                             "or a smaller halo")
        return Tiling(int(tile), halo, float(self.scale), float(spacing), float(self.agreement))

    def plan(self, frame: int, image_hw: tuple[int, int], settings: Settings) -> Plan:
        """The windows of a picture. Raises InputError for numbers that do not fit together."""
        tile, halo, scale, spacing, _ = self.resolved(frame, settings)
        halo, core, step = _steps(tile, halo, scale)
        across, down = (_axis(n, core, halo, step) for n in reversed(image_hw))
        boxes = [[(x[i], y[i], x[i + 2], y[i + 2]) for y in down for x in across] for i in (0, 1)]
        return Plan(*boxes, halo, scale, spacing)


def patch(scale: float) -> int:
    """The side of the encoder's patch in picture pixels, 1 if that is no whole number: windows start at multiples."""
    step = PATCH / scale
    return int(round(step)) if abs(step - round(step)) < 1e-9 and step >= 1 else 1


def last_start(size: int, n: int, step: int) -> int:
    """Where the last window of `size` pixels begins along a side of n, at a multiple of step."""
    return max(0, -((size - n) // step) * step)


def _steps(tile: int, halo: int, scale: float) -> tuple[int, int, int]:
    """The halo and the side of a core in whole steps, and the step: the encoder's patch, if that is whole pixels."""
    step = patch(scale)
    halo = int(halo) // step * step
    return halo, (int(tile) - 2 * halo) // step * step, step


def _axis(n: int, core: int, halo: int, step: int) -> list[tuple[int, int, int, int]]:
    """(window start, core start, window stop, core stop) along a side of n pixels."""
    size, found, start = core + 2 * halo, [], 0
    while True:
        last = start + size >= n
        shifted = last_start(size, n, step) if last else start  # as much context at the end as elsewhere
        found.append((shifted, start + halo if start else 0, min(n, start + size), n if last else start + halo + core))
        if last:
            return found
        start += core
