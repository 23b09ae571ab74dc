"""`samjax evaluate`: a model's scores on data with masks."""

import contextlib
import itertools
import json
import os
import sys
import time
from argparse import ArgumentTypeError, BooleanOptionalAction
from functools import partial
from pathlib import Path

from samjax.commands import protocols
from samjax.commands.common import add_command, add_dtype, add_int8, emit, start_jax
from samjax.errors import InputError
from samjax.outputs import check_folder, write_all

MORE = """\
DATA is a folder of images/ and masks/, a COCO or LVIS .json, SA-1B files, or a folder with a meta.json; each DATA is a
set of its own. A score is the mean IoU over a set's objects of at least 32 px, in percent, at the pictures' own size.
What 255 in mask pictures is, samjax finetune --help says.

prompts: point, from one click or several: the first is the object's pixel farthest from its boundary, each further one
that of the largest error region; "oracle" takes the best mask in place of the most confident one. box, from the box
around each object: one mask. everything: the automatic mask that fits the object best (see --preset). proposals:
average recall (COCO's, IoU 0.5 to 0.95) of the first 10, 100 and 1000 masks from 64 x 64 points, by size. edges: ODS,
OIS, AP and R50 of BSDS500; each mask picture must be one annotator's segmentation of the whole picture. detections:
masks from a detector's boxes (--detections, a list of image_id, category_id, bbox, score), which keep its scores; DATA
is one COCO or LVIS .json. AP and AR as COCO has them; found, the objects of which a box of their category has an IoU of
0.5 or more with the object's own, and IoU, the mean of their masks'. The last three are done as in the paper (Segment
Anything, appendix D).

Written with --out: model, sha256 of its weights, versions, settings, and each object's (and detection's) scores.

status: 0 all done; 1 some pictures, or all of some DATA, could not be scored; 2 wrong arguments, DATA that cannot be
opened, or nothing to score.

examples:
  samjax evaluate data
  samjax evaluate data --split val --model runs/tuned --prompt point --points 1,2,3,5,9 --out scores.json
  samjax evaluate coco/annotations/instances_val2017.json --images coco/val2017 --limit 500
  samjax evaluate instances_val2017.json --images val2017 --prompt detections --detections vitdet.json
"""
DEFAULT = ("point", "box")
PROMPTS = (*DEFAULT, "everything")  # by the object
OF_PROMPTS = {  # options that mean nothing without certain prompts: their default, and these
    "points": ((1,), ["point"]), "first": ("centre", ["point"]), "box_noise": (0.0, ["box"]),
    "refine": (None, ["box", protocols.DETECTIONS]), "preset": (None, ["everything"])}


def add(subparsers) -> None:
    parser = add_command(subparsers, "evaluate", run, "score a model on pictures with masks", MORE)
    parser.add_argument("data", metavar="DATA", nargs="+", help="a folder or file of pictures with masks")
    parser.add_argument("--model", metavar="M", default="mobile_sam",
                        help="a known name (samjax weights) or a file or directory (default: %(default)s)")
    add_dtype(parser)
    add_int8(parser)
    parser.add_argument("--prompt", dest="prompts", metavar="P", action="append", type=_prompt,
                        help="point, box, everything, proposals, edges or detections (repeatable; default: point and "
                             "box)")
    parser.add_argument("--split", metavar="S", help="train, val or test (default: all that there is)")
    parser.add_argument("--points", metavar="N,N", type=_counts, default=(1,),
                        help="score after so many points (default: 1)")
    parser.add_argument("--first", choices=("centre", "random"), default="centre",
                        help="the first point (default: %(default)s)")
    parser.add_argument("--box-noise", metavar="X", type=float, default=0.0,
                        help="move the boxes' sides by noise of this share of them, at most 20 px (0.1 as in training)")
    parser.add_argument("--refine", action=BooleanOptionalAction,
                        help="a second round for boxes, the most confident mask of the first fed back (default: as in "
                             "the paper, of detections only)")
    parser.add_argument("--detections", metavar="FILE", help="a detector's boxes for --prompt detections: COCO results")
    parser.add_argument("--preset", choices=("fast", "paper", "dense"),
                        help="of everything, as in samjax everything (default: 32 x 32 points)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of random points and noise (default: 0)")
    parser.add_argument("--limit", metavar="N", type=int, help="at most N pictures of each DATA, evenly spread")
    parser.add_argument("--images", metavar="DIR", help="the pictures of a COCO .json, if they are not found near it")
    parser.add_argument("--masks", choices=("auto", "instances", "classes"), default="auto",
                        help="what values in mask pictures are (default: %(default)s: 16 bits are instances)")
    parser.add_argument("--out", metavar="FILE", help="write everything there as JSON")
    parser.add_argument("--json", action="store_true", help="print that JSON, and nothing else, on stdout")


def run(args) -> int:
    args.prompts = tuple(dict.fromkeys(args.prompts or DEFAULT))
    _check(args)
    detected = protocols.open_detections(args)
    sources = _sources(args) if set(args.prompts) != {protocols.DETECTIONS} else []
    path, model = _model(args)
    start = time.perf_counter()
    reports, others, refused = _scores(args, sources, detected, path)
    found = _json(args, model, reports, others, time.perf_counter() - start) | {"refused": refused}
    text = json.dumps(found)
    if args.out:
        folder, name = os.path.split(os.path.abspath(args.out))
        write_all(folder, {name: lambda temporary: Path(temporary).write_text(text + "\n")})
    emit(text if args.json else _tables(args, reports, others))
    return 1 if refused or any(report.failures for report in [*reports, *sum(others.values(), [])]) else 0


def _prompt(text: str) -> str:
    if text not in (*PROMPTS, *protocols.NAMES):
        raise ArgumentTypeError(f"{text!r} is none of {', '.join((*PROMPTS, *protocols.NAMES))}")
    return text


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = [0]
    if not 1 <= counts[0] <= counts[-1] <= 100:
        raise ArgumentTypeError(f"{text!r} is not a list of numbers from 1 to 100, such as 1,2,3,5,9")
    return tuple(counts)


def _check(args) -> None:
    """What can be said before data, model and JAX are touched."""
    for option, (default, prompts) in OF_PROMPTS.items():
        if getattr(args, option) != default and not set(prompts) & set(args.prompts):
            option = "no-refine" if getattr(args, option) is False else option.replace("_", "-")
            raise InputError(f"--{option} is of another prompt: add --prompt {' or '.join(prompts)}")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit {args.limit} leaves nothing to score: give 1 or more")
    if not 0 <= args.box_noise <= 1:
        raise InputError(f"--box-noise {args.box_noise} is no share of a side: give 0 to 1")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: give 0 or more")
    protocols.check_detections(args)
    if args.out:
        if os.path.isdir(args.out):
            raise InputError(f"--out {args.out} is a directory: name a file")
        check_folder(os.path.dirname(os.path.abspath(args.out)))


def _sources(args) -> list:
    from samjax.data import open_source

    return [open_source(path, args.split, images=args.images, masks=args.masks) for path in args.data]


def _model(args) -> tuple[Path, dict]:
    import convert
    from samjax import job
    from samjax.weights import KNOWN, resolve

    path = resolve(args.model)
    config = convert.read(path).config  # says at once what is wrong with a file
    sha256 = KNOWN[args.model].sha256 if args.model in KNOWN else job.fingerprint(path)
    return path, {"name": args.model, "architecture": config.name, "sha256": sha256, "dtype": args.dtype,
                  **({"int8": True} if args.int8 else {})}


def _scores(args, sources, detected, path) -> tuple[list, dict[str, list], list[str]]:
    """Reports by the object, one for each source, none if nothing is asked of them; by protocol those by the picture;
    and why there are none of some sources: what was found of the others is not lost by it.

    detected: what `protocols.open_detections` gives. Raises InputError where there is no report at all.
    """
    start_jax()
    from samjax.predict import load

    sam, reports, refused = load(path, dtype=args.dtype, int8=args.int8), [], []
    prompts = [prompt for prompt in args.prompts if prompt in PROMPTS]
    others = {name: [] for name in protocols.NAMES if name in args.prompts}
    jobs = list(itertools.product(sources, [("", reports, partial(_score, args, sam, prompts))] if prompts else []))
    jobs += itertools.product(sources, [(name, found, partial(protocols.score, name, sam, args.limit))
                                        for name, found in others.items() if name != protocols.DETECTIONS])
    if detected:
        truths, results = detected
        judge = partial(protocols.score_detections, sam, results, args.refine, args.limit)
        jobs.append((truths, (protocols.DETECTIONS, others[protocols.DETECTIONS], judge)))
    for source, (name, found, job) in jobs:
        try:
            with _meter(f"{source.name} {name}".strip()) as progress:
                found.append(job(source, progress))
        except InputError as error:
            if len(jobs) == 1:
                raise
            refused.append(str(error))
            _say(str(error))
        else:
            for picture, reason in found[-1].failures:
                _say(f"{source.name}: {picture}: {reason}")
    if len(refused) == len(jobs):
        raise InputError("nothing could be scored")
    return reports, others, refused


def _score(args, sam, prompts, source, progress):
    """A set's report by the object, for all of the prompts."""
    from samjax.evaluate import score, score_everything

    asked, found = [prompt for prompt in prompts if prompt != "everything"], []
    if asked:
        found.append(score(sam, source, asked, limit=args.limit, progress=progress, **_settings(args)))
    if "everything" in prompts:
        found.append(score_everything(sam, source, args.preset, args.limit, progress=None if asked else progress))
    return found[0].joined(found[1]) if found[1:] else found[0]


def _settings(args) -> dict:
    return {"points": args.points, "first": args.first, "box_noise": args.box_noise, "refine": bool(args.refine),
            "seed": args.seed}


def _settings_asked_for(args) -> dict:
    """For the record; reports of detections have their own."""
    found = {**_settings(args), "points": list(args.points), "preset": args.preset}
    return {name: value for name, value in found.items()
            if name not in OF_PROMPTS or OF_PROMPTS[name][1][0] in args.prompts}


@contextlib.contextmanager
def _meter(name: str):
    """A progress bar on a terminal; None elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="image", desc=os.path.basename(name), file=sys.stderr) as bar:
        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _say(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # stderr may be closed
        print("samjax:", " ".join(text.split()), file=sys.stderr)


def _json(args, model: dict, reports, others, seconds: float) -> dict:
    import jax

    from samjax.evaluate.made import commit, versions

    return {"model": model, "versions": versions(), "commit": commit(), "device": jax.devices()[0].device_kind,
            "settings": {"prompts": list(args.prompts), **_settings_asked_for(args), "split": args.split,
                         "limit": args.limit, "masks": args.masks, "images": args.images, **protocols.settings(others)},
            "seconds": round(seconds, 3), "sets": [report.to_json() for report in reports],
            **{name: [report.to_json() for report in found] for name, found in others.items()}}


def _tables(args, reports, others) -> str:
    """A table for what is scored by the object, and one for each other protocol."""
    tables = [_table(args, reports)] if reports else []
    return "\n\n".join([*tables, *(_aligned(protocols.rows(name, found, _labels(found)))
                                   for name, found in others.items() if found)])


def _table(args, reports) -> str:
    """A line for each set, in percent; with boxes also by the objects' size."""
    sizes = ("small", "medium", "large") if "box" in args.prompts else ()
    names = reports[0].names
    rows = [["set", "pictures", "objects", *(_heading(name) for name in names), *(f"box {size}" for size in sizes)]]
    for report, label in zip(reports, _labels(reports)):
        means, by_size = report.summary(), report.by_size()
        rows.append([label, f"{report.pictures:,}", f"{len(report.rows):,}",
                     *(f"{100 * means[name]:.1f}" for name in names),
                     *(f"{100 * by_size[size]['box']:.1f}" if size in by_size else "-" for size in sizes)])
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width
                                                          in zip(row[1:], widths[1:]))]) for row in rows)


def _heading(name: str) -> str:
    """point_2_oracle -> 2 oracle."""
    first, *rest = name.split("_")
    if first != "point":
        return name
    count, *oracle = rest if rest and rest[0].isdigit() else ["1", *rest]
    return f"{count} oracle" if oracle else f"{count} point{'' if count == '1' else 's'}"


def _labels(reports) -> list[str]:
    """Short names of the sets, if they are all different."""
    short = [os.path.basename(os.path.normpath(report.name)) for report in reports]
    return short if len(set(short)) == len(short) else [report.name for report in reports]
