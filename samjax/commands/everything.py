"""`samjax everything`: all masks of many pictures, without prompts."""

import contextlib
import json
import sys
import time
from functools import partial
from pathlib import Path

from samjax.commands.common import add_command, add_dtype, add_int8, check_lone, count, emit, start_jax
from samjax.commands.processes import MORE as PROCESSES
from samjax.commands.processes import Processes, add_processes, join, steady
from samjax.commands.tiles import MORE as TILES
from samjax.commands.tiles import Meter, add_tiles, meter, tiling_of

MORE = """\
PATH is a picture, a folder (with its subfolders) or a pattern. In folders, files that are no pictures are skipped and
counted. A picture that cannot be read is named on stderr, and the job goes on. Killed at any moment, the same command
takes it up again; what is done is not redone.

Written to DIR: STEM.json for each picture, in the layout of SA-1B (masks as COCO's run lengths), in the subfolder that
the picture has in PATH; or with --format coco one instances.json (and its parts, which may be deleted at the end); and
manifest.json: model, settings, counts, failures. Of pictures that differ in their suffix only, all but the first keep
it: a.json, a.png.json.

presets: fast is 16 x 16 points; paper is what SA-1B was made with (21 crops, three times the points); dense is for many
small objects (5 crops, five times the points, lower thresholds). The options below stand in place of a preset's values.

All devices of the machine are used. Pictures are told by their bytes: one that has changed is done again.

status: 0 all done; 1 some pictures failed; 2 wrong arguments, or nothing to do.

examples:
  samjax everything photo.jpg --out masks --overlay
  samjax everything photos 'more/*/*.png' --out masks --preset fast
  samjax everything photos --out masks --format coco --points-per-side 64 --min-mask-region-area 100

""" + TILES + PROCESSES % {"command": "everything"}

# The fields of samjax.settings.Settings that fit on a command line. Stated here, because that module needs NumPy.
OPTIONS = (
    ("points_per_side", int, 32, "a grid of N x N points"),
    ("points_per_batch", int, 64, "points decoded in one call: memory for speed"),
    ("pred_iou_thresh", float, 0.88, "keep masks whose predicted IoU is above it; 0 keeps all"),
    ("stability_score_thresh", float, 0.95, "keep masks whose stability reaches it; 0 keeps all"),
    ("stability_score_offset", float, 1.0, "stability: IoU of the masks cut at this much above and below 0"),
    ("box_nms_thresh", float, 0.7, "of two masks whose boxes' IoU is above it, the less confident goes"),
    ("crop_n_layers", int, 0, "layers of crops besides the picture: 4, 16, 64, ..."),
    ("crop_nms_thresh", float, 0.7, "the same as box_nms_thresh, between crops"),
    ("crop_overlap_ratio", float, 512 / 1500, "overlap of crops, as a share of the short side"),
    ("crop_n_points_downscale_factor", int, 1, "divides the points of a side in each further layer"),
    ("min_mask_region_area", int, 0, "fill holes and drop islands of fewer pixels"),
    ("max_mask_area_fraction", float, 1.0, "drop masks of this share of the picture or more; 1 keeps all"),
)

HUGE = 2**26  # px of a picture, from which on there is a word about --tile


def add(subparsers) -> None:
    parser = add_command(subparsers, "everything", run, "find all masks in pictures, folders of them, data sets", MORE)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a picture, a folder or a pattern such as 'a/*.jpg'")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write")
    parser.add_argument("--model", metavar="M", default="mobile_sam",
                        help="a known name (samjax weights) or a file or directory (default: %(default)s)")
    add_dtype(parser)
    add_int8(parser)
    parser.add_argument("--format", choices=("sa1b", "coco"), default="sa1b",
                        help="a JSON for each picture, or one for all (default: %(default)s)")
    parser.add_argument("--overlay", action="store_true", help="also STEM_overlay.png: the picture with its masks")
    parser.add_argument("--label-map", action="store_true",
                        help="also STEM_labels.png: 16 bits, 0 or the number of the smallest mask there")
    parser.add_argument("--restart", action="store_true", help="redo what is done, with other settings if need be")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    parser.add_argument("--preset", choices=("fast", "paper", "dense"), help="settings for a purpose (see below)")
    group = parser.add_argument_group("settings, by their official names")
    for name, kind, default, text in OPTIONS:
        group.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar="N" if kind is int else "X",
                           help=f"{text} (default: {default:.4g})")
    add_tiles(parser)
    add_processes(parser)


def run(args) -> int:
    from samjax.inputs import find_sources
    from samjax.outputs import check_folder
    from samjax.settings import make_settings

    given = {name: getattr(args, name) for name, *_ in OPTIONS if getattr(args, name) is not None}
    settings = make_settings(args.preset, **given, output_mode="coco_rle")
    tiling = tiling_of(args, settings)
    sources, skipped = find_sources(args.paths, args.out, drawing=args.overlay or args.label_map)
    if tiling is None:
        check_lone(args.paths, sources)
    check_folder(args.out)
    steady()
    return _work(args, sources, skipped, settings, tiling, join(args))


def _work(args, sources, skipped, settings, tiling, place: Processes) -> int:
    import convert
    from samjax import job
    from samjax.weights import KNOWN, resolve

    path = resolve(args.model)
    config = convert.read(path).config  # says at once what is wrong with a file
    sha256 = KNOWN[args.model].sha256 if args.model in KNOWN else job.fingerprint(path)
    model = {"name": args.model, "architecture": config.name, "sha256": sha256, "dtype": args.dtype,
             **({"int8": True} if args.int8 else {})}
    if tiling is not None:
        tiling = tiling.resolved(min(config.image_size), settings)
    task = job.Job(sources, Path(args.out), model, settings, args.format, args.overlay, args.label_map, skipped,
                   *place, tiling)
    start = time.perf_counter()
    with meter(len(task.share(place.process)), tiling is not None) as bar:
        running = job.run(task, lambda: _open(path, args, task, bar), args.restart)
        outcomes = _outcomes(running, bar, tiling is not None)
    _hint(outcomes, tiling, config)
    return _report(args, skipped, outcomes, time.perf_counter() - start)


def _open(path, args, task, bar):
    """What `job.run` needs of a model."""
    start_jax()
    from samjax.predict import load

    sam = load(path, dtype=args.dtype, int8=args.int8)
    if task.tiling is not None:
        from samjax import huge

        return huge.model(sam, task, None if bar is None else Meter(bar))
    from samjax import automatic
    from samjax.job import Model
    from samjax.lockstep import Lockstep

    return Model(partial(automatic.read, sam.config), lambda pictures: automatic.each(sam, pictures, task.settings),
                 ahead=1 + Lockstep(sam).capacity)


def _outcomes(running, bar, tiled: bool) -> list:
    """All outcomes. Failures are said as they occur."""
    outcomes = []
    for outcome in running:
        outcomes.append(outcome)
        if outcome.reason is not None:
            _tell(f"{outcome.name}: {outcome.reason}", bar)
        if bar is not None and not tiled:
            bar.update()
    return outcomes


def _tell(text: str, bar=None) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        (print if bar is None else bar.write)(" ".join(f"samjax: {text}".split()), file=sys.stderr)


def _hint(outcomes, tiling, config) -> None:
    """Says that there is --tile, where a picture lost most of its pixels on the way to the model."""
    large = [outcome for outcome in outcomes if outcome.hw and outcome.hw[0] * outcome.hw[1] > HUGE]
    if large and tiling is None:
        (h, w), more = large[0].hw, f" (and {len(large) - 1} more)" if large[1:] else ""
        _tell(f"hint: {large[0].name} of {w} x {h} px{more} was shrunk to {max(config.image_size)} px for the model; "
              "--tile finds small objects too")


def _report(args, skipped: int, outcomes, seconds: float) -> int:
    good = [outcome for outcome in outcomes if outcome.reason is None]
    failed = [outcome for outcome in outcomes if outcome.reason is not None]
    before = sum(outcome.before for outcome in good)
    rate = (len(good) - before) / max(seconds, 1e-9)
    masks = sum(outcome.masks for outcome in good)
    if args.json:
        emit(json.dumps({"images": len(good), "masks": masks, "failures": {o.name: o.reason for o in failed},
                         "skipped": skipped, "done_before": before, "seconds": round(seconds, 3),
                         "images_per_second": round(rate, 4)}, indent=1))
    else:
        counts = [count(len(good), "image"), count(masks, "mask"), count(len(failed), "failure"),
                  f"{skipped} skipped"] + ([f"{before} done before"] if before else [])
        speed = f", {rate:.3g} images/s" if len(good) > before else ""
        emit(f"{', '.join(counts)}{speed} -> {args.out}")
    return 1 if failed else 0
