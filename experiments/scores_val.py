"""MobileSAM's scores on sets of pictures with masks, beside those of the official PyTorch code, object by object.

    python experiments/scores_val.py DATASETS OFFICIAL.json [--sets busi davis ...] [--redo]

DATASETS holds a folder for each set, with a meta.json; OFFICIAL.json (scores_val.json of the reference folder, see
tests/data/README.md) the official means and a row for each object: one point in the middle (three masks: the most
confident one and the best) and the box (a single mask). Sets that are in the result already are passed over, so that
the job can be cut short and taken up again. Bar: means within 0.2 points (of 100). About a second a picture and 0.1 s
an object on two idle cores.

Result (experiments/results/scores_val.json): every mean within 0.002 points of the official one, every object within
0.011: the rounding of the official rows (0.005), and single pixels.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
NAMES = {"point": ("point_confident", "iou_point_confident"), "point_oracle": ("point_oracle", "iou_point_oracle"),
         "box": ("box", "iou_box")}  # ours -> the official names of the mean and of an object's
BAR = 0.2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path)
    parser.add_argument("official", type=Path)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--redo", action="store_true")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "scores_val.json")
    args = parser.parse_args()
    import samjax
    from samjax.evaluate.made import commit, versions

    official = json.loads(args.official.read_text())
    record = json.loads(args.out.read_text()) if args.out.exists() else {"bar": BAR, "sets": {}}
    sam = samjax.load(args.model)
    for name in args.sets or sorted(official, key=lambda name: official[name]["objects"]):
        if name in record["sets"] and not args.redo:
            continue
        record["sets"][name] = found = compare(sam, args.datasets / name, official[name])
        record["sets"][name] |= {"versions": versions(), "commit": commit()}
        record["worst"] = {"mean": max(one["worst_mean"] for one in record["sets"].values()),
                           "object": max(one["worst_object"] for one in record["sets"].values())}
        write(args.out, record)
        print(name, json.dumps({key: found[key] for key in ("objects", "ours", "official", "worst_object", "seconds")}),
              flush=True)


def compare(sam, folder: Path, official: dict) -> dict:
    """A set's means, ours and theirs, and the largest differences, all in points of 100."""
    from samjax.data import open_source
    from samjax.evaluate import score

    start = time.perf_counter()
    report = score(sam, open_source(folder, official["rows"][0][1]))
    seconds = time.perf_counter() - start
    differences = {name: [] for name in NAMES}
    for row, values in zip(report.rows, official["rows"], strict=True):
        theirs = dict(zip(official["columns"], values))
        same = (row.image, row.area, *row.clicks[0][:2]), tuple(theirs[key] for key in ("image", "area", "x", "y"))
        if same[0] != same[1]:
            raise SystemExit(f"{folder.name}: {same[0]} is not the official object {same[1]}")
        for name, (_, column) in NAMES.items():
            differences[name].append(abs(row.scores[name] - theirs[column]) * 100)
    ours = {name: 100 * mean for name, mean in report.summary().items()}
    theirs = {name: 100 * official[mean] for name, (mean, _) in NAMES.items()}
    return {
        "pictures": report.pictures, "objects": len(report.rows),
        "ours": {name: round(mean, 3) for name, mean in ours.items()},
        "official": {name: round(mean, 3) for name, mean in theirs.items()},
        "by_size": report.to_json()["by_size"],
        "worst_mean": round(max(abs(ours[name] - theirs[name]) for name in NAMES), 4),
        "worst_object": round(max(max(each) for each in differences.values()), 4),
        "objects_off_by_0.1": sum(any(each[i] > 0.1 for each in differences.values()) for i in range(len(report.rows))),
        "seconds": round(seconds, 1),
    }


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
