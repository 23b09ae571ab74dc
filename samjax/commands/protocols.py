"""What `samjax evaluate` scores by the picture and not by the object: proposals and edges."""

from functools import partial

NAMES = ("proposals", "edges")
COLUMNS = {  # heading -> name in the report's summary, and by how much it is multiplied
    "proposals": {"proposals": ("proposals", 1), "AR@10": ("ar_10", 100), "AR@100": ("ar_100", 100),
                  "AR@1000": ("ar_1000", 100), "small": ("ar_small", 100), "medium": ("ar_medium", 100),
                  "large": ("ar_large", 100)},
    "edges": {"ODS": ("ods", 100), "OIS": ("ois", 100), "AP": ("ap", 100), "R50": ("r50", 100)},
}


def score(name: str, sam, limit: int | None, source, progress):
    """A `ProposalReport` or an `EdgeReport`."""
    from samjax import evaluate

    if name == "proposals":
        return evaluate.score_proposals(sam, source, limit=limit, progress=progress)
    return evaluate.score_edges(partial(evaluate.sam_edges, sam), source, limit, channels=sam.config.in_channels,
                                progress=progress)


def settings(names) -> dict:
    """How these protocols are done, for the record."""
    from samjax.evaluate import edge_maps, edges, proposals

    every = {"proposals": proposals.PAPER,
             "edges": {"points_per_side": edge_maps.POINTS, "box_nms_thresh": edge_maps.NMS,
                       "thresholds": edges.THRESHOLDS, "tolerance": edges.TOLERANCE}}
    return {name: every[name] for name in names}


def rows(name: str, reports, labels) -> list[list[str]]:
    """A table's head and a line for each report, in percent but for the number of proposals."""
    found = [["set", "pictures", *COLUMNS[name]]]
    for report, label in zip(reports, labels):
        summary = report.summary()
        values = (factor * summary[key] for key, factor in COLUMNS[name].values())
        found.append([label, f"{report.pictures:,}", *("-" if value != value else f"{value:.1f}" for value in values)])
    return found
