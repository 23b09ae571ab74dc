"""What `samjax evaluate` scores by the picture and not by the object: proposals, edges and a detector's boxes."""

from functools import partial

from samjax.errors import InputError

DETECTIONS = "detections"
NAMES = ("proposals", "edges", DETECTIONS)
COLUMNS = {  # heading -> name in the report's summary, and by how much it is multiplied
    "proposals": {"proposals": ("proposals", 1), "AR@10": ("ar_10", 100), "AR@100": ("ar_100", 100),
                  "AR@1000": ("ar_1000", 100), "small": ("ar_small", 100), "medium": ("ar_medium", 100),
                  "large": ("ar_large", 100)},
    "edges": {"ODS": ("ods", 100), "OIS": ("ois", 100), "AP": ("ap", 100), "R50": ("r50", 100)},
    DETECTIONS: {"AP": ("ap", 100), "AP50": ("ap_50", 100), "AP75": ("ap_75", 100), "AP small": ("ap_small", 100),
                 "AP medium": ("ap_medium", 100), "AP large": ("ap_large", 100), "AR": ("ar", 100),
                 "found": ("found", 100), "IoU": ("iou", 100), "IoU small": ("iou_small", 100),
                 "IoU medium": ("iou_medium", 100), "IoU large": ("iou_large", 100)},
}


def check_detections(args) -> None:
    """What can be said of the options before any file is read. Raises InputError."""
    if DETECTIONS not in args.prompts:
        if args.detections:
            raise InputError(f"--detections {args.detections} is for --prompt {DETECTIONS}: give that too")
        return
    if not args.detections:
        raise InputError(f"--prompt {DETECTIONS} needs a detector's boxes: give --detections FILE (COCO results)")
    if len(args.data) > 1:
        raise InputError(f"--detections are of one DATA, but {len(args.data)} are given: score one at a time")
    if args.split:
        raise InputError(f"--prompt {DETECTIONS} scores all pictures of its .json: leave --split out")


def open_detections(args) -> tuple:
    """The annotations and the detector's results, or () where they are not asked for. Raises InputError."""
    if DETECTIONS not in args.prompts:
        return ()
    from samjax.data import Instances, Results

    truths = Instances(args.data[0], args.images)
    return truths, Results(args.detections, truths)


def score_detections(sam, results, refine: bool | None, limit: int | None, truths, progress):
    """A `DetectionReport`. refine: None is the paper's way, with a second round."""
    from samjax import evaluate

    return evaluate.score_detections(sam, truths, results, refine is not False, limit, progress=progress)


def score(name: str, sam, limit: int | None, source, progress):
    """A `ProposalReport` or an `EdgeReport`."""
    from samjax import evaluate

    if name == "proposals":
        return evaluate.score_proposals(sam, source, limit=limit, progress=progress)
    return evaluate.score_edges(partial(evaluate.sam_edges, sam), source, limit, channels=sam.config.in_channels,
                                progress=progress)


def settings(names) -> dict:
    """How these protocols are done, for the record; reports of detections have their own."""
    from samjax.evaluate import edge_maps, edges, proposals

    every = {"proposals": proposals.PAPER,
             "edges": {"points_per_side": edge_maps.POINTS, "box_nms_thresh": edge_maps.NMS,
                       "thresholds": edges.THRESHOLDS, "tolerance": edges.TOLERANCE}}
    return {name: every[name] for name in names if name in every}


def rows(name: str, reports, labels) -> list[list[str]]:
    """A table's head and a line for each report, in percent but for the number of proposals."""
    found = [["set", "pictures", *COLUMNS[name]]]
    for report, label in zip(reports, labels):
        summary = report.summary()
        values = (factor * summary[key] for key, factor in COLUMNS[name].values())
        found.append([label, f"{report.pictures:,}", *("-" if value != value else f"{value:.1f}" for value in values)])
    return found
