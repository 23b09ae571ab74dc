"""Instance segmentation from the boxes of a perfect and of a careless detector: what a model's masks recall.

    python experiments/detections.py ANNOTATIONS.json [--images DIR] [--limit 0] [--model mobile_sam]

ANNOTATIONS.json is COCO's or LVIS's. No detector runs: the boxes are the objects' own, exact, or each side moved by
normal noise of a tenth of the box (at most 20 px), all with the score 1. Each is asked for once, and with the second
round of Segment Anything, appendix D.4. Shown are COCO's AR, and the mean IoU; AP, which is recorded too, depends on
the order of the pictures where all scores are equal. For a real detector's boxes there is `samjax evaluate --prompt
detections`. The record, experiments/results/detections.json, is written after each of the four runs, and a stopped run
goes on with what is missing.

Result (MobileSAM, 24 of coco128seg's 86 pictures, 224 objects): exact boxes give a mean IoU of 70.6 in one round and of
71.3 in two, AR of 55.9 and 56.2; noised ones 66.7 and 67.4, AR of 50.6 and 50.0. Six minutes of a busy core.
"""

import hashlib
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import records
import suite

NOISE = 0.1
RUNS = {f"{boxes}, {rounds}": (noise, refine) for boxes, noise in (("exact", 0.0), ("noised", NOISE))
        for rounds, refine in (("one round", False), ("two rounds", True))}
SHOWN = ("ar", "ar_small", "ar_medium", "ar_large", "iou", "iou_small", "iou_medium", "iou_large")


def main() -> int:
    parser = suite.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--images", type=Path, help="the folder of the pictures, if they are not near the file")
    parser.add_argument("--limit", type=suite.whole, default=0, help="pictures, evenly spread; 0: all")
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "detections.json")
    parser.add_argument("--redo", action="store_true", help="forget what is recorded")
    args = parser.parse_args()
    from samjax.data import Instances

    truths, sam = Instances(args.annotations, args.images), suite.loaded(args.model)
    found = opened(args, truths)
    for name, (noise, refine) in RUNS.items():
        if name not in found["runs"] or found["runs"][name]["failures"]:
            found["runs"][name] = run(sam(), truths, noise, refine, args.limit) | records.made_now()
            records.write(args.out, found)
    print(report(found))
    failures = {tuple(one) for each in found["runs"].values() for one in each["failures"]}
    for name, why in sorted(failures):
        print(f"{name}: {why}", file=sys.stderr)
    return int(bool(failures))


def opened(args, truths) -> dict:
    """The record at args.out, or a new one. Raises InputError where it was made otherwise."""
    from samjax.errors import InputError

    sha256 = hashlib.sha256(args.annotations.read_bytes()).hexdigest()
    stamp = {"model": suite.model_of(args.model), "settings": {
        "annotations": args.annotations.name, "sha256": sha256, "limit": args.limit, "of": len(truths), "noise": NOISE}}
    found = records.read(args.out) if args.out.exists() and not args.redo else {**stamp, "runs": {}}
    if not all(isinstance(found.get(key), dict) for key in (*stamp, "runs")):
        raise InputError(f"{args.out} is no record of this experiment: give another --out")
    for key, part in stamp.items():
        records.agree(args.out, found[key], part)
    return found


def run(sam, truths, noise: float, refine: bool, limit: int) -> dict:
    """A `DetectionReport` as JSON, without the folders of this machine. The boxes go by way of a file, as a detector's
    do."""
    from samjax.data import Results
    from samjax.evaluate import score_detections

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boxes.json"
        path.write_text(json.dumps(boxes_of(truths, noise, limit)))
        report = score_detections(sam, truths, Results(path, truths), refine, limit or None).to_json()
    report["name"], report["settings"]["detections"] = truths.path.name, "the objects' own boxes"
    report["failures"] = [[name, suite.without(why, truths.images)] for name, why in report["failures"]]
    return report


def boxes_of(truths, noise: float, limit: int = 0) -> list[dict]:
    """A detection for each object that is no crowd and has pixels, of the pictures that `score_detections` takes;
    noise depends on the picture alone. A damaged mask leaves its picture without boxes: it fails when it is scored."""
    from samjax.errors import InputError
    from samjax.evaluate import Crop, noised
    from samjax.evaluate.pictures import spread

    found = []
    for scene in (truths.scenes[place] for place in spread(len(truths), limit or None)):
        random = np.random.default_rng([0, zlib.crc32(scene.name.encode())])
        try:
            masks = scene.masks()
        except InputError:
            continue
        for instance, mask in zip(scene.instances, masks):
            if not instance.crowd and mask.area():
                box = Crop(mask.mask()).box
                x0, y0, x1, y1 = noised(box, noise, scene.size, random) if noise else box
                found.append({"image_id": scene.id, "category_id": instance.category, "score": 1.0,
                              "bbox": [x0, y0, x1 - x0, y1 - y0]})
    return found


def report(found: dict) -> str:
    rows = [[name, suite.part_of(one | {"of": found["settings"]["of"]}), one["objects"],
             *(suite.percent(one["summary"][key]) for key in SHOWN)]
            for name, one in found["runs"].items()]
    return suite.table(rows, ["boxes", "pictures", "objects", *map(heading, SHOWN)])


def heading(key: str) -> str:
    """ar_small -> AR small."""
    measure, *size = key.split("_")
    return " ".join([{"ar": "AR", "iou": "IoU"}[measure], *size])


if __name__ == "__main__":
    suite.run(main)
