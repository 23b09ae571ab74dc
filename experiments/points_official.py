"""The protocol of points and boxes beside the official PyTorch predictor in a plain loop: the same scores, the time.

    python experiments/points_official.py DATASETS [--sets kvasir_polyp busi cwfid] [--pictures 4] [--objects 6]

DATASETS holds a folder for each set. Of each set's val split so many pictures, of each so many objects, evenly spread,
are scored with MobileSAM after 1, 2, 3, 5 and 9 points and from their boxes: by `samjax.evaluate.score`, and by the
official SamPredictor, object by object and click by click, with error regions and distances by SciPy on whole masks,
as one would write it down. Picture by picture both take their turn, so that both see the same machine; the first
picture is scored once before by each, for compiling and warming up. Needs the packages of the extra "parity" and
mobilesam-lite. A few minutes of two cores. The result goes to experiments/results/points_official.json.

Bars: means within 0.1 points of 100, at least 3 times the official speed.

Result (two pictures of each set, nine objects): 4.7 times the speed; means within 0.001 points.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import peers
import suite
from records import machine, write
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
COUNTS = (1, 2, 3, 5, 9)
NAMES = ["point", *(f"point_{count}" for count in COUNTS[1:]), "box"]
BARS = {"difference": 0.1, "times": 3.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path)
    parser.add_argument("--sets", nargs="+", default=["kvasir_polyp", "busi", "cwfid"])
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--out", type=Path, default=suite.RESULTS / "points_official.json")
    args = parser.parse_args()
    import torch

    import samjax
    from samjax.evaluate.made import commit
    from samjax.weights import resolve

    torch.set_num_threads(2)
    sam = samjax.load("mobile_sam")
    predictor = peers.official_predictor(peers.official_mobile_sam(str(resolve("mobile_sam"))))
    found, warm = {}, False
    for name in args.sets:
        pictures = records(args, name)
        if not warm:
            ours(sam, pictures[0]), official(predictor, pictures[0])
            warm = True
        found[name] = compare(sam, predictor, pictures)
        print(name, {key: value for key, value in found[name].items() if key != "rows"}, flush=True)
    times = sum(one["official_seconds"] for one in found.values()) / sum(one["seconds"] for one in found.values())
    worst = max(abs(gap) for one in found.values() for gap in one["difference"].values())
    print(f"{times:.1f} times the official speed; means differ by {worst:.3f} points at most")
    write(args.out, {"bars": BARS, "times": round(times, 2), "difference": worst, "versions": peers.versions(),
                     "machine": machine(), "commit": commit(), "sets": found})


def records(args, name: str) -> list:
    """Some pictures of a set, with some of their objects."""
    from samjax.data import open_source
    from samjax.data.sources import LEAST
    from samjax.evaluate.pictures import spread

    source = open_source(args.datasets / name, "val")
    chosen = []
    for place in spread(len(source), args.pictures):
        record = source[place]
        record.objects = [mask for mask in record.objects if mask.area() >= LEAST]
        chosen.append(suite.some(record, args.objects))
    return [record for record in chosen if record.objects]


def compare(sam, predictor, pictures: list) -> dict:
    rows, seconds = {"samjax": [], "official": []}, {"samjax": 0.0, "official": 0.0}
    for record in pictures:
        for who, run in (("official", lambda r: official(predictor, r)), ("samjax", lambda r: ours(sam, r))):
            begin = time.perf_counter()
            rows[who] += run(record)
            seconds[who] += time.perf_counter() - begin
    mean = {who: 100 * np.array(values).mean(axis=0) for who, values in rows.items()}
    return {"pictures": len(pictures), "objects": len(rows["samjax"]),
            "mean": dict(zip(NAMES, mean["samjax"].round(3).tolist())),
            "difference": dict(zip(NAMES, (mean["samjax"] - mean["official"]).round(4).tolist())),
            "seconds": round(seconds["samjax"], 2), "official_seconds": round(seconds["official"], 2),
            "rows": np.round(rows["samjax"], 4).tolist()}


def ours(sam, record) -> list[list[float]]:
    from samjax.evaluate import score

    return [[row.scores[name] for name in NAMES] for row in score(sam, [record], points=COUNTS).rows]


def official(predictor, record) -> list[list[float]]:
    predictor.set_image(record.image)
    return [by_points(predictor, truth) + [by_box(predictor, truth)] for truth in
            (mask.mask() for mask in record.objects)]


def by_points(predictor, truth: np.ndarray) -> list[float]:
    points, labels, scores, logits, found = [deepest(truth)], [1], [], None, None
    for count in range(1, max(COUNTS) + 1):
        if count > 1:
            click = correction(found, truth)
            if click is not None:
                points.append(click[:2])
                labels.append(click[2])
        if count == 1 or click is not None:
            masks, predicted, low = predictor.predict(np.array(points), np.array(labels), mask_input=logits,
                                                      multimask_output=count == 1)
            best = int(predicted.argmax())
            found, logits = masks[best], low[best][None]
        if count in COUNTS:
            scores.append(iou(found, truth))
    return scores


def by_box(predictor, truth: np.ndarray) -> float:
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return iou(predictor.predict(box=box, multimask_output=False)[0][0], truth)


def correction(found: np.ndarray, truth: np.ndarray) -> tuple[int, int, int] | None:
    """x, y, label of the click into the largest error region; None if there is none."""
    regions = []
    for region, label in ((truth & ~found, 1), (found & ~truth, 0)):
        parts, count = ndimage.label(region, np.ones((3, 3)))
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            regions.append((sizes.max(), parts == sizes.argmax() + 1, label))
    if not regions:
        return None
    _, region, label = max(regions, key=lambda each: each[0])
    return *deepest(region), label


def deepest(region: np.ndarray) -> tuple[int, int]:
    distance = ndimage.distance_transform_edt(np.pad(region, 1))
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x) - 1, int(y) - 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


if __name__ == "__main__":
    main()
