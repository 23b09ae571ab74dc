"""Edges on BSDS500: a model's zero-shot edges beside Canny's and Sobel's, scored by the data set's benchmark.

    python experiments/edges.py DATASET [--images N] [--split val] [--methods model canny sobel] [--plot FILE.png]

DATASET is a folder with a meta.json, or of images/ and masks/, whose mask pictures are one annotator's segmentation
each. The record, experiments/results/edges.json, grows with each picture, and a stopped run goes on where it was; what
is there is only summed up again. --images takes that many pictures, evenly spread; 0 (default) takes all. Where methods
hold different pictures, each is also summed up over the pictures that all have. The plot has the curves of precision
over recall of all methods that are in the record.

Scoring is what takes the time where there are many edges: some 20 ms of one core for each threshold and annotator.

The paper (Segment Anything, table 3, 200 test pictures): Canny ODS .600, OIS .640, AP .580; Sobel ODS .539; SAM ViT-H
ODS .768, OIS .786, AP .794, R50 .928.

How near the matching is to the benchmark's least-cost one: on crops of 120 x 120 pixels of ten pictures, Sobel's edges
at two thresholds, as many outline pixels are matched with each annotator; of the edges' pixels 8967 of 25942 count as
right where it is 8959 (precision .3457 and .3453; measured with another matching of the largest size).

Result (all 160 pictures, train and val): MobileSAM ODS .741, OIS .754, AP .675, R50 .911; Canny .596, .645, .592, .731,
within .012 of the paper's on its 200; Sobel, smoothed and thinned here, .587. Canny's smoothing was chosen among three
on 16 train pictures. A picture takes MobileSAM 17 s on two idle cores, 27 on one as recorded.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import suite
from records import Record, count, failed
from suite import number

PAPER = {"canny": {"ods": 0.600, "ois": 0.640, "ap": 0.580}, "sobel": {"ods": 0.539},
         "SAM ViT-H": {"ods": 0.768, "ois": 0.786, "ap": 0.794, "r50": 0.928}}
SHOWN = ("ods", "ois", "ap", "r50")


def main() -> int:
    parser = suite.common(suite.Parser(description=__doc__.splitlines()[0]), "edges.json", images=0)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--methods", nargs="+", choices=("model", "canny", "sobel"),
                        default=["canny", "sobel", "model"])
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    from samjax.data import open_source
    from samjax.evaluate import edges

    source = open_source(args.dataset, args.split)
    settings = {"set": args.dataset.resolve().name, "split": args.split, "thresholds": edges.THRESHOLDS,
                "tolerance": edges.TOLERANCE}
    record = Record.open(args.out, {"settings": settings}, summed_up, groups="methods", redo=args.redo,
                         upgrade=upgraded)
    methods = [prepared(method, args.model) for method in args.methods]
    for name, _, _, made in methods:
        record.group(name, made, of=len(source))
    for name, predict, channels, _ in methods:
        suite.each_picture([(name, source, suite.places_of(source, args.images))], record,
                           partial(measured, predict, channels), folder=args.dataset)
    record.write()
    print(report(record.found))
    if args.plot:
        plot(args.plot, record.found)
    return suite.ended(record)


def upgraded(found: dict) -> dict:
    """A record as it is written now: older ones had other places for settings and summaries."""
    methods = found.get("methods")
    if isinstance(methods, dict) and "settings" not in found:
        found["settings"] = {name: found.pop(name) for name in ("thresholds", "tolerance") if name in found}
        for one in methods.values():
            one.pop("summary", None)  # made anew
    return found


def prepared(method: str, model: str):
    """(name, predict, a function that gives the channels it wants, what it is made with); the model is loaded when it
    is first used."""
    from samjax.evaluate import edge_maps

    if method == "canny":
        return method, edge_maps.canny, lambda: 3, {"sigma": edge_maps.CANNY_SIGMA, "low": edge_maps.CANNY_LOW}
    if method == "sobel":
        return method, edge_maps.sobel, lambda: 3, {"sigma": edge_maps.SOBEL_SIGMA}
    known, sam = suite.model_of(model), suite.loaded(model)
    made = {"model": known["name"], "sha256": known["sha256"], "points_per_side": edge_maps.POINTS,
            "nms": edge_maps.NMS}
    return known["name"], lambda pixels: edge_maps.sam_edges(sam(), pixels), lambda: sam().config.in_channels, made


def measured(predict, channels, name: str, source, place: int) -> dict:
    """One picture's counts, and the seconds of its edges."""
    from samjax.evaluate import edges

    seconds = []
    counts = edges.score_picture(partial(timed, predict, seconds), source, place, channels=channels())
    return {"seconds": round(seconds[0], 3), **counts.to_json()}


def timed(predict, seconds: list, pixels):
    start = time.perf_counter()
    found = predict(pixels)
    seconds.append(time.perf_counter() - start)
    return found


def counts_of(method: dict, names=None) -> list:
    """Of all pictures that could be scored, or of those of these names."""
    from samjax.evaluate.edges import Counts

    return [Counts.from_json(one) for name, one in method["pictures"].items()
            if not failed(one) and (names is None or name in names)]


def summed_up(found: dict) -> dict:
    """Each method's scores over its own pictures, and over those that all methods have."""
    methods = {name: one for name, one in found["methods"].items() if count(one)}
    shared = set.intersection(*({name for name, each in one["pictures"].items() if not failed(each)}
                                for one in methods.values())) if methods else set()
    summary = {name: {"pictures": count(one), "of": one.get("of"), **scores(counts_of(one)), "median_seconds": float(
        np.median([each["seconds"] for each in one["pictures"].values() if not failed(each)]))}
        for name, one in methods.items()}
    common = {name: scores(counts_of(one, shared)) for name, one in methods.items()} if shared else {}
    return {"paper": PAPER, "summary": summary, "common": {"pictures": len(shared), "methods": common}}


def scores(counts: list) -> dict:
    from samjax.evaluate import edges

    return {key: number(value) for key, value in edges.summary(counts).items()}


def differ(found: dict) -> bool:
    """Whether the methods hold different pictures, so that only what they have in common compares."""
    return any(one["pictures"] != found["common"]["pictures"] for one in found["summary"].values())


def report(found: dict) -> str:
    def row(name, one, pictures):
        return [name, pictures, *("-" if one[key] is None else f"{one[key]:.3f}" for key in SHOWN)]

    heading = ["pictures", "ODS", "OIS", "AP", "R50"]
    parts = [suite.table([row(name, one, suite.part_of(one)) for name, one in found["summary"].items()],
                         ["edges", *heading])]
    if differ(found):
        parts.append(suite.table([row(name, one, found["common"]["pictures"])
                                  for name, one in found["common"]["methods"].items()],
                                 ["the pictures that all have", *heading]))
    return "\n\n".join(parts)


def plot(path: Path, found: dict) -> None:
    """Precision over recall, with lines of equal F-measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 6), layout="constrained")
    at = np.linspace(0.01, 1, 200)
    for f in np.arange(0.1, 1, 0.1):
        with np.errstate(divide="ignore", invalid="ignore"):
            other = f * at / (2 * at - f)
        axes.plot(at, np.where((other > 0) & (other <= 1), other, np.nan), color="0.85", linewidth=0.8)
    for name, summary in found["summary"].items():
        every = counts_of(found["methods"][name])
        total = sum(every[1:], every[0])
        there = total.found > 0
        line, = axes.plot(total.recall[there], total.precision[there],
                          label=f"{name} (ODS {summary['ods']:.3f}, OIS {summary['ois']:.3f}, AP {summary['ap']:.3f})")
        axes.plot(summary["ods_recall"], summary["ods_precision"], "o", color=line.get_color())
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision", aspect="equal")
    axes.legend(loc="lower left", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    suite.run(main)
