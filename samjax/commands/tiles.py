"""`samjax everything --tile`: its options, what of them is wrong, its progress."""

import argparse
import contextlib
import sys
from fractions import Fraction

from samjax.errors import InputError

MORE = """\
huge pictures: without --tile a picture of any size is shrunk to the model's frame, which for most models is 1024 px
wide: what is small in it is lost. With --tile it is gone through at full size in tiles that overlap; what their seams
cut is looked at again in further tiles around it, or joined: what is found depends little on the tiles. N follows from
memory and speed, --scale and --spacing from the objects: one is found if a point falls on it. TIFFs (in tiles or
strips) and .npy are read part by part, all else is unpacked once into a temporary file ($TMPDIR). Tiles that are done
are kept in DIR/unfinished until their picture is done: a job that was killed goes on with the next tile. --overlay is
reduced to at most 4096 px; there are no label maps, and no crops (presets paper and dense). One device works on a
picture.
  samjax everything ortho.tif --out masks --tile --overlay
  samjax everything slide.tif --out masks --tile 512 --scale 2       smaller objects, four times the work
  samjax everything ortho.tif --out masks --tile 1536 --scale 2/3    larger ones, half the work

"""
CROPPED = ("paper", "dense")  # presets


def add_tiles(parser) -> None:
    """Adds --tile, --halo, --scale, --spacing and --agreement."""
    group = parser.add_argument_group("huge pictures (see below)")
    group.add_argument("--tile", type=_side, nargs="?", const=None, default=False, metavar="N",
                       help="go through pictures in tiles of N px a side (default: what the model's frame takes)")
    group.add_argument("--halo", type=int, metavar="N",
                       help="px on each side that a tile shares with the next (default: an eighth of it)")
    group.add_argument("--scale", type=_ratio, metavar="X",
                       help="the encoder's pixels for one of the picture, as 2 or 2/3: more for smaller objects "
                            "(default: 1)")
    group.add_argument("--spacing", type=float, metavar="X",
                       help="px from point to point (default: the frame's side / points per side / scale)")
    group.add_argument("--agreement", type=float, metavar="X",
                       help="of masks in two tiles that are one object, the least IoU where the tiles overlap "
                            "(default: 0.6)")


def tiling_of(args, settings):
    """The Tiling that was asked for, or None. Raises InputError for what no model could mend."""
    given = {name: getattr(args, name) for name in ("halo", "scale", "spacing", "agreement")
             if getattr(args, name) is not None}
    if args.tile is False:
        if given:
            raise InputError(f"--{next(iter(given))} is for pictures in tiles: give --tile as well, or leave it out")
        return None
    from samjax.tiles import Tiling

    if args.label_map:
        raise InputError("--label-map is not supported with --tile, because all of the map would be in memory: leave "
                         "it out; the masks are in the JSON")
    if args.preset in CROPPED and settings.crop_n_layers:
        raise InputError(f"preset {args.preset} looks at crops, which tiles take the place of: leave it out, and for "
                         "smaller objects give --scale 2")
    tiling = Tiling(args.tile, **given)
    tiling.check(settings)
    return tiling


class Meter:
    """A bar of the tiles of one picture after the other."""

    def __init__(self, bar):
        self.bar, self.name = bar, None

    def __call__(self, name: str, done: int, total: int) -> None:
        if name != self.name:
            self.name = name
            self.bar.reset(total=total)
            self.bar.set_description(name, refresh=False)
        self.bar.total = total  # further tiles are known when all others are done
        self.bar.update(done - self.bar.n)


def meter(total: int, tiled: bool):
    """A progress bar on a terminal; None elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm(total=None if tiled else total, unit="tile" if tiled else "image", file=sys.stderr)


def _side(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels (PATHs come before --tile, or after "
                                         "--tile=1024)") from None


def _ratio(text: str) -> float:
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a ratio such as 2/3") from None
