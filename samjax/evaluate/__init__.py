"""Scores against ground truth: mean IoU after points and from boxes.

    report = score(samjax.load("mobile_sam"), samjax.data.open_source("folder", split="val"))
    report.summary()    # {"point": 0.52, "point_oracle": 0.66, "box": 0.74}

Everything but a model's own part does without JAX, so it is quick to import.
"""

import importlib

_HOMES = {
    "measures": "concealed", "describe": "properties", "reliability": "strata", "stratify": "strata",
    "Crop": "crops", "Upscaled": "crops", "iou": "crops",
    "centre": "points", "next_point": "points", "score_points": "points",
    "score_edges": "edges", "outlines": "edges", "sam_edges": "edge_maps", "canny": "edge_maps",
    "score_proposals": "proposals", "average_recall": "proposals",
    "score_detections": "detections", "DetectionReport": "detections",
    "noised": "boxes", "score_boxes": "boxes", "size_of": "boxes",
    "match": "everything", "score_everything": "everything",
    "Report": "report", "Row": "report", "embed": "scoring", "score": "scoring",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'samjax.evaluate' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"samjax.evaluate.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOMES))
