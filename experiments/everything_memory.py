"""Peak memory of automatic masks while the number of masks grows.

    python experiments/everything_memory.py [--image PHOTO]

Each case is a process of its own (MobileSAM, 32 x 32 points, masks as run lengths); its peak is the largest resident
set, Python and compiling included. The number of masks is driven by the thresholds and by how many masks suppression
leaves, from some fifty to more than two thousand. About four minutes on two cores; beside the official generator's peak
see `speed.py --only everything`. Result (experiments/results/everything_memory.json): 0.83 GB with 15 masks, 1.03 GB
with 72, 1.07 GB with 3,072.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import peers
from speed import commit, environment, write
from speed_subjects import peak_megabytes

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "defaults": {},
    "lower thresholds": {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9},
    "every mask": {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "coffee.jpg")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "everything_memory.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return one(args)
    rows = []
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, "--case", case, "--image", args.image], check=True, text=True,
                              stdout=subprocess.PIPE, env=environment(2))
        rows.append({"case": case, **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    write(args.out, {"cases": rows, "image": args.image.name, "versions": peers.versions(), "commit": commit(),
                     "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"})


def one(args):
    sys.path.insert(0, str(ROOT))
    import samjax

    masks = samjax.load("mobile_sam").everything(args.image, output_mode="coco_rle", **CASES[args.case])
    print(json.dumps({"masks": len(masks), "peak_mb": round(peak_megabytes())}))


if __name__ == "__main__":
    main()
