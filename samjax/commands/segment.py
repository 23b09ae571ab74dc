"""`samjax segment`: masks for one image, by points, boxes or a mask."""

import json
import math
import os
import re
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

from samjax.commands.common import add_command, add_dtype, add_int8, emit, start_jax
from samjax.errors import InputError
from samjax.outputs import check_folder, write_all

MORE = """\
Coordinates are pixels of the image, x before y, from its top left corner.

All points belong to one object; with one box (or --mask) they refine it. Several boxes are several objects. A mask that
comes alone is joined by the box around it, because by itself it is a weak prompt. Each object gets three masks, for a
prompt may mean a part or the whole; --single gives one, which is best where several prompts leave no doubt.

Written to DIR: STEM_mask_K.png (0 and 255, the image's size; K counts object by object), STEM_overlay.png (the most
confident mask of each object) and STEM.json (which mask is which, with its predicted IoU, area and bounding box).

examples:
  samjax segment cat.jpg --point 320,240
  samjax segment cat.jpg --point 320,240 --point 100,50,0 --single     but not what lies at 100,50
  samjax segment cat.jpg --box 10,20,300,400 --box 310,15,600,380      two objects
  samjax segment cat.jpg --mask rough.png --out masks --json           refine a rough mask
"""


def add(subparsers) -> None:
    parser = add_command(subparsers, "segment", run, "find the masks that points, boxes or a mask ask for", MORE)
    parser.add_argument("image", metavar="IMAGE", help="the picture: any format that Pillow reads")
    parser.add_argument("--point", metavar="X,Y[,L]", dest="points", action="append", type=_point, default=[],
                        help="a point on the object, or with L = 0 beside it (repeatable)")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", dest="boxes", action="append", type=_box, default=[],
                        help="a box around an object (repeatable)")
    parser.add_argument("--mask", metavar="PNG", help="a rough mask of the object, of the image's size")
    parser.add_argument("--single", action="store_true", help="one mask an object instead of three")
    parser.add_argument("--model", metavar="M", default="mobile_sam",
                        help="a known name (samjax weights) or a file or directory (default: %(default)s)")
    add_dtype(parser)
    add_int8(parser)
    parser.add_argument("--out", metavar="DIR", default=".", help="where to write (default: here)")
    parser.add_argument("--json", action="store_true", help="print the JSON, and nothing else, on stdout")


def run(args) -> None:
    from samjax.image import read_image

    _check_combination(args)
    image = read_image(args.image)
    mask = _read_mask(args, image.shape[:2])
    prompts = _prompts(args, mask)
    _check_prompts(prompts, image.shape[:2])
    check_folder(args.out)
    sam = _load(args)
    found = _segment(sam, args, image, prompts, mask)
    report = _report(args, sam, image, prompts, found)
    _write(args, image, prompts, found, report)
    emit(_json(report) if args.json else _summary(args, report))


def _numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ArgumentTypeError(f"{text!r} is not {form}")
    if not all(map(math.isfinite, values)):
        raise ArgumentTypeError(f"{text!r} holds NaN or infinity")
    return [int(value) if value.is_integer() else value for value in values]


def _point(text: str) -> list[float]:
    point = [*_numbers(text, (2, 3), "X,Y or X,Y,L, pixels and a label"), 1][:3]
    if point[2] not in (0, 1):
        raise ArgumentTypeError(f"{text!r}: label {point[2]:g} is none of 1 (on the object) and 0 (beside it)")
    return point


def _box(text: str) -> list[float]:
    return _numbers(text, (4,), "X0,Y0,X1,Y1 in pixels")


def _check_combination(args) -> None:
    if not (args.points or args.boxes or args.mask):
        raise InputError("no prompt: give --point X,Y, --box X0,Y0,X1,Y1 or --mask PNG")
    if len(args.boxes) > 1 and (args.points or args.mask):
        raise InputError(f"{len(args.boxes)} boxes are as many objects, but points and a mask belong to one: give one "
                         "box with them, or run once for each object")


def _read_mask(args, image_hw):
    if not args.mask:
        return None
    from samjax.image import read_mask

    folder, name = os.path.split(os.path.realpath(args.mask))
    outputs = re.escape(_stem(args)) + r"_(mask_\d+|overlay)\.png"
    if folder == os.path.realpath(args.out) and re.fullmatch(outputs, name):
        raise InputError(f"--mask {args.mask} could be overwritten by an output of that name: choose another --out")
    mask = read_mask(args.mask)
    if mask.shape != image_hw:
        (h, w), (mask_h, mask_w) = image_hw, mask.shape
        raise InputError(f"{args.mask} is {mask_w} x {mask_h} pixels, but the image is {w} x {h}: they must be of one "
                         "size")
    if not mask.any():
        raise InputError(f"{args.mask} is empty: it must mark at least one pixel")
    return mask


def _prompts(args, mask) -> dict:
    """points, labels and boxes as `Sam.segment` takes them, or None."""
    boxes = args.boxes
    if mask is not None and not args.points and not boxes:
        boxes = [_bounds(mask)]
    return {"points": [point[:2] for point in args.points] or None,
            "labels": [point[2] for point in args.points] or None, "boxes": boxes or None}


def _check_prompts(prompts, image_hw) -> None:
    """Says what is wrong before a model is fetched and JAX starts: these rules hold for every model."""
    from samjax.config import VIT_T
    from samjax.prompts import make_slots

    make_slots(VIT_T, image_hw, **prompts)


def _load(args):
    import convert
    from samjax.weights import resolve

    path = resolve(args.model)
    convert.read(path)  # says at once what is wrong with a file
    start_jax()
    from samjax.predict import load

    return load(path, dtype=args.dtype, int8=args.int8)


def _segment(sam, args, image, prompts, mask):
    from samjax.geometry import mask_to_logits
    from samjax.image import read_image

    channels = sam.config.in_channels
    embedding = sam.encode(image if channels == 3 else read_image(args.image, channels))
    logits = None if mask is None else mask_to_logits(mask, sam.config)
    return sam.segment(embedding, **prompts, mask_logits=logits, multimask=not args.single)


def _report(args, sam, image, prompts, found) -> dict:
    stem, best = _stem(args), found.best
    entries = [{"file": f"{stem}_mask_{n * len(masks) + m}.png", "object": n, "best": bool(m == best[n]),
                "predicted_iou": round(float(found.iou[n, m]), 6), "area": int(mask.sum()), "bbox": _bbox(mask)}
               for n, masks in enumerate(found.masks) for m, mask in enumerate(masks)]
    return {
        "image": {"file": os.path.basename(args.image), "width": image.shape[1], "height": image.shape[0]},
        "model": args.model,
        "architecture": sam.config.name,
        "prompts": {"points": prompts["points"] or [], "labels": prompts["labels"] or [],
                    "boxes": prompts["boxes"] or [], "mask": args.mask},
        "overlay": f"{stem}_overlay.png",
        "masks": entries,
    }


def _write(args, image, prompts, found, report) -> None:
    import numpy as np

    from samjax.draw import overlay, save_png

    def draw(path):
        best = found.masks[np.arange(len(found.masks)), found.best]
        points, labels = (None if prompts[key] is None else [prompts[key]] for key in ("points", "labels"))
        save_png(path, overlay(image, best, points, labels, prompts["boxes"]))

    def describe(path):
        Path(path).write_text(_json(report) + "\n")

    masks = found.masks.reshape(-1, *found.masks.shape[2:])
    write_all(args.out, {report["overlay"]: draw,
                         **{entry["file"]: partial(save_png, picture=mask)
                            for entry, mask in zip(report["masks"], masks)},
                         f"{_stem(args)}.json": describe})


def _json(report) -> str:
    """Indented, with each list of numbers on a line of its own."""
    text = json.dumps(report, indent=1)
    return re.sub(r"\[\n([^][{}\"]*)\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _summary(args, report) -> str:
    masks, image = report["masks"], report["image"]
    objects = masks[-1]["object"] + 1
    several = objects > 1
    lines = [f"{image['file']}, {image['width']} x {image['height']}, {report['model']}: "
             f"{_count(objects, 'object')}, {_count(len(masks), 'mask')}"]
    rows = [("file", *(["object"] if several else []), "predicted IoU", "area", "")]
    rows += [(os.path.join(args.out, mask["file"]), *([str(mask["object"])] if several else []),
              f"{mask['predicted_iou']:.3f}", f"{mask['area']:,} px",
              "best" if mask["best"] and len(masks) > objects else "") for mask in masks]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines += ["  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width
                                                           in zip(row[1:-1], widths[1:])), row[-1]]).rstrip()
              for row in rows]
    return "\n".join([*lines, f"overlay: {os.path.join(args.out, report['overlay'])}",
                      f"details: {os.path.join(args.out, _stem(args) + '.json')}"])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _stem(args) -> str:
    return Path(args.image).stem


def _bounds(mask) -> list[int]:
    """x0, y0, x1, y1 around the set pixels, the last column and row exclusive; zeros for none."""
    rows, cols = (mask.any(axis=axis).nonzero()[0] for axis in (1, 0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1] if len(rows) else [0, 0, 0, 0]


def _bbox(mask) -> list[int]:
    """x, y, width, height."""
    x0, y0, x1, y1 = _bounds(mask)
    return [x0, y0, x1 - x0, y1 - y0]
