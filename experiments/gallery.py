"""Overlays of real pictures of many domains, to be looked at: everything, and some with prompts; and a sheet of all.

    python experiments/gallery.py OUT [--photos FOLDER] [--datasets FOLDER] [--sets bsds500 dsb2018 ...] [--number 1]

FOLDER of --photos holds photographs; that of --datasets a folder for each data set that `samjax.data.open_source`
reads, of which --number pictures are taken, evenly spaced. OUT gets for each picture a NAME.json (SA-1B's layout) and a
NAME_everything.jpg, for those of data sets also a NAME_prompts.jpg (the boxes of the three largest objects, or a point
on the largest), and sheet.jpg. What is there is only drawn again, not segmented. Some 20 s of CPU a picture with the
preset `fast`. Nothing is measured, and nothing of it belongs into the repository.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WIDTH, COLUMNS, GAP = 480, 4, 8  # of the sheet
OBJECTS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--datasets", type=Path)
    parser.add_argument("--sets", nargs="+", help="default: all in the folder")
    parser.add_argument("--number", type=int, default=1, help="pictures of each data set")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--model", default="mobile_sam")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, pixels, objects in pictures(args):
        drawn.append(saved(args.out / f"{name}_everything.jpg", everything(args, name, pixels)))
        if objects:
            drawn.append(saved(args.out / f"{name}_prompts.jpg", prompts(args, name, pixels, objects)))
        print(name, flush=True)
    sheet(drawn).save(args.out / "sheet.jpg", quality=88)


def pictures(args):
    """Yields (name, pixels, objects' masks)."""
    from samjax.data import open_source
    from samjax.image import read_image

    for path in sorted(args.photos.glob("*.jpg")) if args.photos else ():
        yield path.stem, read_image(path), []
    folders = sorted(args.datasets.iterdir()) if args.datasets else ()
    for folder in folders:
        if (folder / "meta.json").exists() and (args.sets is None or folder.name in args.sets):
            source = open_source(folder, "val")
            for i in np.linspace(0, len(source) - 1, args.number + 2)[1:-1].round().astype(int).tolist():
                record = source[i]
                yield f"{folder.name}_{Path(record.name).stem}", record.image, [one.mask() for one in record.objects]


def everything(args, name: str, pixels: np.ndarray) -> Image.Image:
    from samjax.annotations import overlay_all, sa1b, save_json

    path = args.out / f"{name}.json"
    if not path.exists():
        records = model(args.model).everything(pixels, args.preset, output_mode="coco_rle")
        save_json(path, sa1b(records, pixels.shape[:2], name))
    return overlay_all(pixels, json.loads(path.read_text())["annotations"])


def prompts(args, name: str, pixels: np.ndarray, objects: list[np.ndarray]) -> Image.Image:
    """Boxes where there are several objects, else a point, with the most confident mask of each."""
    from samjax.draw import overlay
    from samjax.evaluate.points import farthest
    from samjax.regions import bounding_box

    objects = sorted(objects, key=lambda mask: -mask.sum())[:OBJECTS]
    if len(objects) > 1:
        boxes = [bounding_box(mask) for mask in objects]
        given = {"boxes": [[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in boxes]}
    else:
        given = {"points": [[list(farthest(objects[0]))]], "labels": [[1]]}
    path = args.out / f"{name}_prompts.npz"
    if path.exists():
        masks = np.load(path)["masks"]
    else:
        sam = model(args.model)
        found = sam.segment(sam.encode(pixels), **given, multimask="points" in given)
        masks = np.stack([found.masks[n, best] for n, best in enumerate(found.best)])
        np.savez_compressed(path, masks=masks)
    return overlay(pixels, masks, given.get("points"), given.get("labels"), given.get("boxes"))


_MODELS = {}


def model(name: str):
    import samjax

    if name not in _MODELS:
        _MODELS[name] = samjax.load(name)
    return _MODELS[name]


def saved(path: Path, picture: Image.Image) -> Image.Image:
    picture.save(path, quality=90)
    return picture


def sheet(drawn: list[Image.Image]) -> Image.Image:
    """All in columns, each below the last of what is then the shortest."""
    small = [picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
             for picture in drawn]
    columns = [[] for _ in range(COLUMNS)]
    height = lambda column: sum(picture.height + GAP for picture in column)
    for picture in small:
        min(columns, key=height).append(picture)
    out = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, math.ceil(max(map(height, columns))) + GAP), "white")
    for i, column in enumerate(columns):
        for j, picture in enumerate(column):
            out.paste(picture, (GAP + i * (WIDTH + GAP), GAP + height(column[:j])))
    return out


if __name__ == "__main__":
    main()
