"""Small objects in a picture that is larger than the model's frame: encoded whole, or each in a crop around it.

    python experiments/zoom.py DATA [--split val] [--objects 2] [--shrink 1 4]

DATA is a data set of aerial pictures in the layout of meta.json (NWPU VHR-10 for the result below): `items`, each with
image, mask (instance ids) and split. All pictures of the split are put side by side into one large picture, and at most
--objects objects of each (at random) are segmented by MobileSAM from their box and from one point (the pixel farthest
from the outline), first with the large picture encoded whole, then by samjax.tiling.segment. --shrink makes all of it
smaller first, so that objects have few pixels of their own. The mean IoU is over objects, from points of the most
confident mask. About ten minutes of two cores' time each.

Result (experiments/results/zoom.json): see there.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from huge import surroundings
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
EDGES = (0, 16, 32, 64, 128, math.inf)  # longer sides, in pixels, that the results are grouped by


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--shrink", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--model", default="mobile_sam", help="a name or a path")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "zoom.json")
    args = parser.parse_args()
    import samjax

    sam = samjax.load(args.model)
    record = {"data": args.data.name, "split": args.split, "model": args.model, "pictures": [], **surroundings()}
    for shrink in args.shrink:
        mosaic, objects = load(args, shrink)
        start = time.perf_counter()
        rows = list(scores(sam, mosaic, objects))
        summary = {"shrink": shrink, "size": mosaic.shape[:2], "objects": len(rows),
                   "seconds": round(time.perf_counter() - start, 1), **table(rows)}
        record["pictures"].append(summary)
        print(json.dumps(summary, indent=1), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def load(args, shrink: int) -> tuple[np.ndarray, list]:
    """The large picture, and (box, point, corner, mask in its picture) of the objects."""
    random = np.random.default_rng(0)
    items = [item for item in json.loads((args.data / "meta.json").read_text())["items"] if item["split"] == args.split]
    parts = []
    for item in items:
        image, labels = (Image.open(args.data / item[key]) for key in ("image", "mask"))
        size = image.width // shrink, image.height // shrink
        parts.append((np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX)),
                      np.asarray(labels.resize(size, Image.Resampling.NEAREST))))
    h, w = (max(image.shape[i] for image, _ in parts) for i in (0, 1))
    across = math.ceil(math.sqrt(len(parts) * h / w))
    mosaic = np.full((-(-len(parts) // across) * h, across * w, 3), 128, np.uint8)
    objects = []
    for i, (image, labels) in enumerate(parts):
        x, y = i % across * w, i // across * h
        mosaic[y : y + image.shape[0], x : x + image.shape[1]] = image
        ids = [k for k in np.unique(labels) if k and (labels == k).sum() >= 32]
        for k in sorted(random.permutation(ids)[: args.objects]):
            objects.append(prompts(labels == k, (x, y)))
    return mosaic, objects


def prompts(mask: np.ndarray, corner):
    from scipy import ndimage

    ys, xs = np.nonzero(mask)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) + (*corner, *corner)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return box, np.array([x + 0.5, y + 0.5]) + corner, corner, mask


def scores(sam, mosaic: np.ndarray, objects: list):
    """Yields for each object its longer side and its IoUs."""
    from samjax.tiling import segment
    from samjax.windows import open_picture

    whole = sam.encode(mosaic)
    picture = open_picture(mosaic)
    for i, (box, point, corner, mask) in enumerate(objects):
        row = {"side": int(max(box[2] - box[0], box[3] - box[1]))}
        out = sam.segment(whole, boxes=box, multimask=False)
        row["box whole"] = iou(out.masks[0, 0], (0, 0), mask, corner)
        out = sam.segment(whole, points=[point], labels=[1])
        row["point whole"] = iou(out.masks[0, out.best[0]], (0, 0), mask, corner)
        del out
        for name, prompt in (("box", {"boxes": box}), ("point", {"points": [point], "labels": [1]})):
            found, = segment(sam, picture, **prompt)
            row[f"{name} zoomed"] = iou(found.mask(), found.crop[:2], mask, corner)
        print(f"{i + 1} of {len(objects)}", row, file=sys.stderr, flush=True)
        yield row


def iou(found: np.ndarray, at, mask: np.ndarray, corner) -> float:
    """Of two masks that lie at two corners of one picture."""
    (a, b), (x, y), (h, w) = at, corner, mask.shape
    x0, y0, x1, y1 = max(a, x), max(b, y), min(a + found.shape[1], x + w), min(b + found.shape[0], y + h)
    both = 0
    if x0 < x1 and y0 < y1:
        both = int((found[y0 - b : y1 - b, x0 - a : x1 - a] & mask[y0 - y : y1 - y, x0 - x : x1 - x]).sum())
    return round(both / float(found.sum() + mask.sum() - both), 4)


def table(rows: list[dict]) -> dict:
    """Means over all and by the objects' longer sides."""
    names = [name for name in rows[0] if name != "side"]
    mean = lambda part: {"objects": len(part)} | {name: round(float(np.mean([r[name] for r in part])), 4)
                                                  for name in names}
    sides = {f"{low}..{high} px": [r for r in rows if low <= r["side"] < high] for low, high in zip(EDGES, EDGES[1:])}
    return {"all": mean(rows), "by_side": {name: mean(part) for name, part in sides.items() if part}}


if __name__ == "__main__":
    main()
