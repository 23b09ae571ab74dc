"""Instance segmentation from the boxes of a perfect and of a careless detector: what a model's masks leave of their AP.

    python experiments/detections.py ANNOTATIONS.json [--images DIR] [--limit 0] [--model mobile_sam]

ANNOTATIONS.json is COCO's or LVIS's. No detector runs: the boxes are the objects' own, exact, or each side moved by
normal noise of a tenth of the box (at most 20 px), all with the score 1, so that a mask's IoU with its object alone
decides what counts. Each is asked for once, and with the second round of Segment Anything, appendix D.4. For a real
detector's boxes there is `samjax evaluate --prompt detections`. The record, experiments/results/detections.json, is
written after each of the four runs, and a stopped run goes on with what is missing.

The paper (ViT-H, a detector's boxes, two rounds): AP 46.5 on COCO, 44.7 on LVIS; with perfect boxes it would be more.
"""

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import records
import suite

NOISE = 0.1
RUNS = {f"{boxes}, {rounds}": (noise, refine) for boxes, noise in (("exact", 0.0), ("noised", NOISE))
        for rounds, refine in (("one round", False), ("two rounds", True))}
SHOWN = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large", "iou", "iou_small", "iou_medium", "iou_large")


def main() -> int:
    parser = suite.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=Path, help="the folder of the pictures, if they are not near the file")
    parser.add_argument("--limit", type=suite.whole, default=0, help="pictures, evenly spread; 0: all")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "detections.json")
    args = parser.parse_args()
    from samjax.data import Instances
    from samjax.evaluate.made import commit, versions

    truths, sam = Instances(args.annotations, args.images), suite.loaded(args.model)
    stamp = {"model": suite.model_of(args.model), "settings": {
        "set": args.annotations.resolve().parent.name, "limit": args.limit, "of": len(truths), "noise": NOISE}}
    found = {**stamp, "runs": {}}
    if args.out.exists():
        found = records.read(args.out)
        for key, part in stamp.items():
            records.agree(args.out, found.setdefault(key, {}), part)
    for name, (noise, refine) in RUNS.items():
        if name not in found["runs"]:
            found["runs"][name] = run(sam(), truths, noise, refine, args.limit) | {
                "commit": commit(), "versions": versions(), "machine": records.machine()}
            records.write(args.out, found)
    print(report(found))
    return 0


def run(sam, truths, noise: float, refine: bool, limit: int) -> dict:
    """A `DetectionReport` as JSON. The boxes go by way of a file, as a detector's do."""
    from samjax.data import Results
    from samjax.evaluate import score_detections

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boxes.json"
        path.write_text(json.dumps(boxes_of(truths, noise)))
        report = score_detections(sam, truths, Results(path, truths), refine, limit or None).to_json()
    report["name"], report["settings"]["detections"] = Path(report["name"]).name, "the objects' own boxes"
    return report


def boxes_of(truths, noise: float) -> list[dict]:
    """A detection for each object that is no crowd and has pixels; noise depends on the picture alone."""
    from samjax.evaluate import Crop, noised

    found = []
    for scene in truths.scenes:
        random = np.random.default_rng([0, zlib.crc32(scene.name.encode())])
        for instance, mask in zip(scene.instances, scene.masks()):
            if not instance.crowd and mask.area():
                box = Crop(mask.mask()).box
                x0, y0, x1, y1 = noised(box, noise, scene.size, random) if noise else box
                found.append({"image_id": scene.id, "category_id": instance.category, "score": 1.0,
                              "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return found


def report(found: dict) -> str:
    rows = [[name, one["pictures"], one["objects"], *(suite.percent(one["summary"][key]) for key in SHOWN)]
            for name, one in found["runs"].items()]
    return suite.table(rows, ["boxes", "pictures", "objects", *(key.replace("_", " ") for key in SHOWN)])


if __name__ == "__main__":
    suite.run(main)
