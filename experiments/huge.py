"""Everything in a picture of 20,000 x 20,000 px, in tiles of three sizes: memory, each shape once, the same set.

    python experiments/huge.py [--folder FOLDER] [--size 20000] [--tiles 768 1024 1536] [--redo]

Draws a synthetic aerial picture (aerial.py) into a tiled TIFF, tile by tile, and runs samjax.tiling with MobileSAM on
it, each tile size in a process of its own. What is done is kept in FOLDER and not redone. About half an hour of two
cores' time at the default size. Bars: less than 3 GB at the peak (the process's largest resident set, all of Python and
JAX in it); every shape found exactly once (one mask with IoU of 0.5 or more); 98 % of the masks the same for any two
tile sizes. Windows of one colour (the sea) are skipped, as samjax.tiling does; the points are 96 px apart, and shapes
smaller than that allows for are placed over one.

Result (experiments/results/huge.json): at most 1.36 GB; all of 315 shapes are found, each once and nothing else, in
tiles of 768, 1024 and 1536 px; the masks are the same for any two sizes (IoU of 0.9 or more). Of 1,444, 676 and 256
windows 176, 96 and 44 show land; 68, 58 and 39 further ones are looked at for what seams cut.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from aerial import Aerial
from convert_memory import peak
from tiled_tiff import write_tiled

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SCALE, HALO, SPACING, SEED = 2 / 3, 128, 96, 0
BARS = {"peak_gb": 3.0, "found_once": 1.0, "agreement": 0.98}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "samjax_huge")
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--tiles", type=int, nargs="+", default=[768, 1024, 1536])
    parser.add_argument("--model", default="mobile_sam", help="a name or a path")
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "huge.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        return one(args)
    picture = the_picture(args.size)
    record = {**the_file(picture, args), "bars": BARS, "scale": round(SCALE, 4), "halo": HALO, "spacing": SPACING,
              "runs": [], "pairs": [], **surroundings()}
    for tile in args.tiles:
        record["runs"].append({**measured(tile, args), **judged(picture, masks_of(tile, args), tile)})
        record["pairs"] = pairs(args, [run["tile"] for run in record["runs"]])
        record["worst"] = worst(record)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(record["runs"][-1]), flush=True)
    print(json.dumps(record["pairs"]), json.dumps(record["worst"]), sep="\n")


def the_picture(size: int) -> Aerial:
    if size < 8000:
        return Aerial(size, 1, 40, SPACING, land=2000, seed=SEED)
    return Aerial(size, 3, 105, SPACING, land=3400, seed=SEED)


def the_file(picture: Aerial, args) -> dict:
    """Writes the TIFF file, unless it is there."""
    path = tiff_path(args)
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        write_tiled(temporary, (args.size, args.size), picture.draw, tile=(512, 512))
        os.replace(temporary, path)
    land = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in picture.land)
    return {"size": args.size, "shapes": len(picture.shapes), "land": round(land / args.size**2, 4),
            "file_mb": round(path.stat().st_size / 1e6, 1)}


def tiff_path(args) -> Path:
    return args.folder / f"aerial_{args.size}_{SPACING}_{SEED}.tif"


def measured(tile: int, args) -> dict:
    """The numbers of a run in a process of its own, or of an earlier one."""
    path = args.folder / f"run_{args.size}_{tile}.json"
    if args.redo or not path.exists():
        subprocess.run([sys.executable, __file__, "--one", str(tile), "--folder", args.folder, "--size", str(args.size),
                        "--model", args.model], check=True)
    return json.loads(path.read_text())


def one(args) -> None:
    """Segments the file with tiles of one size; writes the masks, then the numbers."""
    import samjax
    from samjax import tiling
    from samjax.windows import open_picture

    tile, start, cpu = args.one, time.perf_counter(), time.process_time()
    sam = samjax.load(args.model)
    encoded, points, state = [], [], {}
    encode, decode = tiling._encode, tiling._decode
    tiling._encode = lambda *a: encoded.append(1) or encode(*a)
    tiling._decode = lambda *a: points.append(int(a[-1])) or decode(*a)

    def progress(done, total):
        state.setdefault("windows", total)
        state["again"] = total - state["windows"]
        if done % 20 == 0:
            print(f"tile {tile}: window {done} of {total}, {sum(points)} points, "
                  f"{time.perf_counter() - start:.0f} s, {peak() / 1e9:.2f} GB", file=sys.stderr, flush=True)

    with open_picture(tiff_path(args)) as picture:
        found = tiling.records(sam, picture, tile=tile, halo=HALO, scale=SCALE, spacing=SPACING, progress=progress)
        masks = tiling.save_sa1b(masks_path(tile, args), found, picture.shape[:2], tiff_path(args).name)
    numbers = {"tile": tile, "masks": masks, "windows": state["windows"], "again": state["again"],
               "encoded": len(encoded),
               "points": sum(points), "seconds": round(time.perf_counter() - start, 1),
               "cpu_seconds": round(time.process_time() - cpu, 1),
               "peak_gb": round(peak() / 1e9, 3)}
    (args.folder / f"run_{args.size}_{tile}.json").write_text(json.dumps(numbers))


def masks_path(tile: int, args) -> Path:
    return args.folder / f"masks_{args.size}_{tile}.json"


def masks_of(tile: int, args) -> list:
    """(box, runs, points) of the masks of a run."""
    from samjax import rle, runs

    found = []
    for record in json.loads(masks_path(tile, args).read_text())["annotations"]:
        edges = np.cumsum(rle.decompress(record["segmentation"]["counts"]))
        stop = edges[1::2]
        mask = runs.Runs(edges[::2][: len(stop)], stop, record["segmentation"]["size"][0])
        found.append((runs.bounds(mask), mask, record["point_coords"]))
    return found


def judged(picture: Aerial, masks: list, tile: int) -> dict:
    """Each shape's masks with IoU >= 0.5, and the IoU of the best."""
    from samjax import runs, tiling

    truth = [(shape.box, runs.of_mask(shape.mask(), shape.box[:2], picture.size)) for shape in picture.shapes]
    table = [overlaps(box, mask, masks) for box, mask in truth]
    best = np.array([max(row.values(), default=0) for row in table])
    number = np.array([sum(value >= 0.5 for value in row.values()) for row in table])
    matched = {max(row, key=row.get) for row, n in zip(table, number) if n}
    _, cores = layout_of(tiling, picture.size, tile)
    cut = sum(all(not (x0 <= a and y0 <= b and c <= x1 and d <= y1) for x0, y0, x1, y1 in cores)
              for (a, b, c, d), _ in truth)
    return {"found": int((best >= 0.5).sum()), "found_once": int((number == 1).sum()),
            "iou_mean": round(best.mean(), 4), "iou_min": round(best.min(), 4),
            "on_seams": cut, "extra_masks": len(masks) - len(matched),
            "joined": sum(len(points) > 1 for *_, points in masks)}


def layout_of(tiling, size: int, tile: int):
    from samjax.config import VIT_T
    from samjax.predict import Sam
    from samjax.settings import Settings

    layout = tiling.plan(Sam(VIT_T, {}), (size, size), Settings(), tile, HALO, SCALE, SPACING)
    return layout.windows, layout.cores


def overlaps(box, mask, others) -> dict[int, float]:
    """The IoU with each of the others that overlaps."""
    from samjax import runs

    found = {}
    for i, (other, its_mask, *_) in enumerate(others):
        if box[0] <= other[2] and other[0] <= box[2] and box[1] <= other[3] and other[1] <= box[3]:
            both = runs.shared(mask, its_mask)
            if both:
                found[i] = both / (mask.area + its_mask.area - both)
    return found


def pairs(args, tiles: list[int]) -> list[dict]:
    """For each two tile sizes the share of masks (of both) that have a partner, one to one, at two IoUs."""
    found = {tile: masks_of(tile, args) for tile in tiles}
    out = []
    for i, a in enumerate(tiles):
        for b in tiles[i + 1 :]:
            table = sorted(((value, j, k) for j, (box, mask, _) in enumerate(found[a])
                            for k, value in overlaps(box, mask, found[b]).items()), reverse=True)
            row = {"tiles": [a, b]}
            for least in (0.5, 0.9):
                left, right = set(), set()
                for value, j, k in table:
                    if value >= least and j not in left and k not in right:
                        left.add(j)
                        right.add(k)
                row[f"agreement_{least}"] = round(2 * len(left) / max(1, len(found[a]) + len(found[b])), 4)
            out.append(row)
    return out


def worst(record: dict) -> dict:
    """The worst of each number, to hold against the bars."""
    return {"peak_gb": max(run["peak_gb"] for run in record["runs"]),
            "found_once": min(run["found_once"] for run in record["runs"]) / record["shapes"],
            "agreement": min((pair["agreement_0.5"] for pair in record["pairs"]), default=None)}


def surroundings() -> dict:
    import jax

    from samjax import __version__

    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"samjax": __version__, "commit": said.stdout.strip(), "jax": jax.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}


if __name__ == "__main__":
    main()
