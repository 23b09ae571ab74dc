"""Edges on BSDS500: a model's zero-shot edges beside Canny's and Sobel's, scored by the data set's benchmark.

    python experiments/edges.py DATASET [--images N] [--split val] [--methods model canny sobel] [--plot FILE.png]

DATASET is a folder with a meta.json, or of images/ and masks/, whose mask pictures are one annotator's segmentation
each. The result goes to experiments/results/edges.json after every picture, and a run that was stopped goes on where
it was. --images takes that many pictures, evenly spread; 0 (default) takes all. The plot has the curves of precision
over recall of all methods that are in the result.

Scoring is what takes the time where there are many edges: some 20 ms of one core for each threshold and annotator.

The paper (Segment Anything, table 3, 200 test pictures): Canny ODS .600, OIS .640, AP .580; Sobel ODS .539; SAM ViT-H
ODS .768, OIS .786, AP .794, R50 .928.

How near the matching is to the benchmark's least-cost one: on crops of 120 x 120 pixels of ten pictures, Sobel's edges
at two thresholds, as many outline pixels are matched with each annotator; of the edges' pixels 8967 of 25942 count as
right where it is 8959 (precision .3457 and .3453; measured with another matching of the largest size).

Result: MobileSAM ODS .718, OIS .742, AP .630, R50 .904 on 52 of the set's 160 pictures (train and val). On all 160
Canny .596, .645, .592, .731, within .012 of the paper's on its 200; Sobel, smoothed and thinned here, .587. Canny's
smoothing was chosen among three on 16 train pictures. A picture takes MobileSAM 17 s on two cores.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAPER = {"canny": {"ods": 0.600, "ois": 0.640, "ap": 0.580}, "sobel": {"ods": 0.539},
         "SAM ViT-H": {"ods": 0.768, "ois": 0.786, "ap": 0.794, "r50": 0.928}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--split")
    parser.add_argument("--methods", nargs="+", choices=("model", "canny", "sobel"),
                        default=["canny", "sobel", "model"])
    parser.add_argument("--model", default="mobile_sam")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "edges.json")
    args = parser.parse_args()
    from samjax.data import open_source
    from samjax.evaluate.proposals import spread

    record = json.loads(args.out.read_text()) if args.out.exists() else {"methods": {}}
    source = open_source(args.dataset, args.split)
    places = spread(len(source), args.images or None)
    for method in args.methods:
        name, predict, made = prepared(method, args.model)
        found = record["methods"].setdefault(name, {**made, "pictures": {}})
        if found.get("sha256") != made.get("sha256"):
            raise SystemExit(f"{args.out} has {name} with other weights: give another --out")
        for place in places:
            measure(args.out, record, found, predict, source, place)
        print(name, json.dumps(found.get("summary")), flush=True)
    if args.plot:
        plot(args.plot, record["methods"])


def prepared(method: str, model: str):
    """(name, predict, what it is made with); the model is loaded when it is first used."""
    from samjax.evaluate import edge_maps

    if method == "canny":
        return method, edge_maps.canny, {"sigma": edge_maps.CANNY_SIGMA, "low": edge_maps.CANNY_LOW}
    if method == "sobel":
        return method, edge_maps.sobel, {"sigma": edge_maps.SOBEL_SIGMA}
    import samjax
    from samjax import job
    from samjax.weights import KNOWN, resolve

    sha256 = KNOWN[model].sha256 if model in KNOWN else job.fingerprint(resolve(model))
    made = {"model": model, "sha256": sha256, "points_per_side": edge_maps.POINTS, "nms": edge_maps.NMS}
    loaded = []

    def predict(pixels):
        if not loaded:
            loaded.append(samjax.load(model))
        return edge_maps.sam_edges(loaded[0], pixels)

    return (model if model in KNOWN else Path(model).name), predict, made


def measure(out: Path, record: dict, found: dict, predict, source, place: int) -> None:
    """One picture's counts, and the scores of all so far, into the record, if they are not there."""
    from samjax.evaluate import edges
    from samjax.evaluate.made import commit, versions

    name = source.item_name(place)
    if name in found["pictures"]:
        return
    seconds = []
    counts = edges.score_picture(partial(timed, predict, seconds), source, place)
    found["pictures"][name] = {"seconds": round(seconds[0], 3), **counts.to_json()}
    every = [edges.Counts.from_json(one) for one in found["pictures"].values()]
    found["summary"] = {"pictures": len(every), **{key: round(value, 4) for key, value in edges.summary(every).items()},
                        "median_seconds": float(np.median([one["seconds"] for one in found["pictures"].values()]))}
    record |= {"paper": PAPER, "thresholds": edges.THRESHOLDS, "tolerance": edges.TOLERANCE,
               "versions": versions(), "commit": commit()}
    write(out, record)


def timed(predict, seconds: list, pixels):
    start = time.perf_counter()
    found = predict(pixels)
    seconds.append(time.perf_counter() - start)
    return found


def plot(path: Path, methods: dict) -> None:
    """Precision over recall, with lines of equal F-measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from samjax.evaluate.edges import Counts

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    at = np.linspace(0.01, 1, 200)
    for f in np.arange(0.1, 1, 0.1):
        with np.errstate(divide="ignore", invalid="ignore"):
            other = f * at / (2 * at - f)
        axes.plot(at, np.where((other > 0) & (other <= 1), other, np.nan), color="0.85", linewidth=0.8)
    for name, found in methods.items():
        every = [Counts.from_json(one) for one in found["pictures"].values()]
        total = sum(every[1:], every[0])
        there = total.found > 0
        summary = found["summary"]
        line, = axes.plot(total.recall[there], total.precision[there],
                          label=f"{name} (ODS {summary['ods']:.3f}, OIS {summary['ois']:.3f}, AP {summary['ap']:.3f})")
        axes.plot(summary["ods_recall"], summary["ods_precision"], "o", color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", aspect="equal")
    axes.legend(loc="lower left", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
