"""Object proposals: average recall of the first 10, 100 and 1000 automatic masks, by the objects' size.

    python experiments/proposals.py SET... [--presets quick] [--images 5] [--split val]

SET is a data set that `samjax.data.open_source` reads; with --images 0 all of its pictures are taken, else so many,
evenly spread. Presets: `paper` (Segment Anything, appendix D.3: 64 x 64 points, no filters, NMS 0.9), `quick` (the same
with 32 x 32), `default` (`Sam.everything` as it is). The result goes to experiments/results/proposals.json after every
picture, and a run that was stopped goes on where it was.

The paper (LVIS, ViT-H): AR@1000 59.3; small 45.5, medium 81.6, large 86.9.

Result: `quick`, two pictures of each of six sets, 27 objects in all: AR@1000 of 0 (chase_db1, crackforest), 35 (busi),
38 (coco128seg), 68 (cleargrasp) and 70 (camo_sample). Too few to compare; a picture takes one busy core one to three
minutes.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--presets", default="paper")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "proposals.json")
    args = parser.parse_args()
    from samjax import job
    from samjax.evaluate.made import commit, versions
    from samjax.weights import KNOWN, resolve

    sha256 = KNOWN[args.model].sha256 if args.model in KNOWN else job.fingerprint(resolve(args.model))
    record = json.loads(args.out.read_text()) if args.out.exists() else {"model": args.model, "sha256": sha256}
    if record["sha256"] != sha256:
        raise SystemExit(f"{args.out} is another model's: give another --out")
    rows = record.setdefault("pictures", [])
    for row in measured(args, {(row["set"], row["preset"], row["picture"]) for row in rows}):
        rows.append(row)
        record |= {"summary": summary(rows), "versions": versions(), "commit": commit()}
        write(args.out, record)
    for line in summary(rows):
        print(json.dumps(line))


def measured(args, done: set):
    """A row for each picture and preset that is not done yet."""
    import samjax
    from samjax.data import open_source
    from samjax.evaluate.proposals import PRESETS, propose, spread

    sam = samjax.load(args.model)
    for folder in args.sets:
        source = open_source(folder, args.split)
        for preset in args.presets.split(","):
            for place in spread(len(source), args.images or None):
                name = source.item_name(place)
                if (folder.name, preset, name) in done:
                    continue
                start = time.perf_counter()
                found = propose(sam, source[place], PRESETS[preset])
                seconds = time.perf_counter() - start
                if found is None:
                    continue
                print(f"{folder.name:12} {name:32} {preset:8} {len(found.areas)} objects, {found.proposals} proposals, "
                      f"{seconds:.1f} s", flush=True)
                yield {"set": folder.name, "preset": preset, "picture": name, "seconds": round(seconds, 2),
                       **to_json(found)}


def to_json(found) -> dict:
    """Each object's area and best IoU, and at each IoU threshold the rank of its proposal by size (-1: none), of which
    only the sizes that it has are written."""
    from samjax.evaluate.proposals import SIZES

    return {"proposals": found.proposals, "areas": found.areas.tolist(), "best": found.best.round(4).tolist(),
            "ranks": {size: {int(k): found.ranks[i, :, k].tolist() for k in np.flatnonzero(found.sizes[i])}
                      for i, size in enumerate(SIZES)}}


def from_json(row: dict):
    from samjax.evaluate.proposals import IOUS, SIZES, Found

    n = len(row["areas"])
    ranks, sizes = np.full((len(SIZES), len(IOUS), n), -1), np.zeros((len(SIZES), n), bool)
    for i, size in enumerate(SIZES):
        for k, values in row["ranks"][size].items():
            ranks[i, :, int(k)], sizes[i, int(k)] = values, True
    return Found(ranks, sizes, np.array(row["best"]), np.array(row["areas"]), row["proposals"])


def summary(rows: list[dict]) -> list[dict]:
    """Average recall in percent for each set and preset, over all of its objects."""
    from samjax.evaluate.proposals import LIMITS, SIZES, average_recall

    lines = []
    for name, preset in dict.fromkeys((row["set"], row["preset"]) for row in rows):
        part = [row for row in rows if (row["set"], row["preset"]) == (name, preset)]
        found = [from_json(row) for row in part]
        recall = average_recall(found)
        lines.append({"set": name, "preset": preset, "pictures": len(part),
                      "objects": sum(len(one.areas) for one in found),
                      "proposals": round(float(np.mean([one.proposals for one in found])), 1),
                      **{f"ar_{limit}": round(100 * recall["all"][i], 2) for i, limit in enumerate(LIMITS)},
                      **{f"ar_1000_{size}": round(100 * recall[size][-1], 2) if np.isfinite(recall[size][-1]) else None
                         for size in SIZES if size != "all"},
                      "median_seconds": float(np.median([row["seconds"] for row in part]))})
    return lines


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
