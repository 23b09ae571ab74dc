"""Where a model is weak: mean scores of objects in bins of their properties, and how well it knows its own IoU.

NumPy only. Properties come from `samjax.evaluate.properties`, scores from the rows of `samjax.evaluate.score`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

INF = float("inf")
EDGES = {
    "relative_area": (0, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
    "contrast": (0, 5, 10, 15, 20, 30, 45, INF),
    "solidity": (0, 0.5, 0.7, 0.8, 0.9, 0.95, 1),
    "thinness": (0, 1, 1.5, 2, 3, 6, 20, INF),
}
BINS = 10  # of the reliability curve


def stratify(properties: Sequence[Mapping[str, float | None]], scores: Sequence[Mapping[str, float | None]],
             names: Sequence[str], edges: Mapping[str, Sequence[float]] = EDGES,
             estimates: Mapping[str, str] | None = None) -> dict[str, list[dict]]:
    """Means of scores in bins of each property.

    Args:
        properties, scores: one of each for an object; None or NaN is unknown.
        names: which scores.
        edges: by property, rising: a bin has its lower edge and not its upper one; the last has both.
        estimates: of some scores the name of what the model says that they are: {"box": "box_predicted"}.

    Returns:
        By property a list of bins with objects in them: low, high (None: no end), objects, and for each name the mean
        (None where it is unknown of all), and NAME_error, its standard error (None of fewer than two objects); for
        each of the estimates ece_NAME, the expected calibration error of the bin's objects (see `reliability`; of a
        few objects chance alone makes it large).
    """
    estimates = estimates or {}
    values = {name: _array(score.get(name) for score in scores) for name in {*names, *estimates, *estimates.values()}}
    found = {}
    for name, cuts in edges.items():
        own = _array(each.get(name) for each in properties)
        places = _bins(own, cuts)
        found[name] = [{"low": cuts[i], "high": cuts[i + 1] if np.isfinite(cuts[i + 1]) else None,
                        "objects": int((places == i).sum()),
                        **{key: value for one in names for key, value in _mean(one, values[one][places == i]).items()},
                        **{f"ece_{one}": reliability(values[said][places == i], values[one][places == i])["ece"]
                           for one, said in estimates.items()}}
                       for i in range(len(cuts) - 1) if (places == i).any()]
    return found


def reliability(predicted: Sequence[float | None], actual: Sequence[float | None], bins: int = BINS) -> dict:
    """How far the model's own estimates of its IoU can be trusted.

    An estimate is a linear output: what is below 0 or above 1 counts as 0 or 1. Bins are of equal width.

    Returns:
        objects (with both values known); bins: those with objects, each with low, high, objects, and the means
        predicted and actual; ece: the expected calibration error, the mean over objects of |predicted - actual| of
        their bins' means (Guo et al., "On calibration of modern neural networks", 2017, for an IoU in place of a
        class's accuracy); bias: mean predicted - mean actual; mae: the mean error of single estimates. None without
        objects.
    """
    predicted, actual = _array(predicted), _array(actual)
    known = np.isfinite(predicted) & np.isfinite(actual)
    predicted, actual = np.clip(predicted[known], 0, 1), actual[known]
    if not len(actual):
        return {"objects": 0, "bins": [], "ece": None, "bias": None, "mae": None}
    edges = np.linspace(0, 1, bins + 1)
    places, found = _bins(predicted, edges), []
    for i in range(bins):
        here = places == i
        if here.any():
            found.append({"low": float(edges[i]), "high": float(edges[i + 1]), "objects": int(here.sum()),
                          "predicted": float(predicted[here].mean()), "actual": float(actual[here].mean())})
    ece = sum(one["objects"] * abs(one["predicted"] - one["actual"]) for one in found) / len(actual)
    return {"objects": len(actual), "bins": found, "ece": ece, "bias": float((predicted - actual).mean()),
            "mae": float(np.abs(predicted - actual).mean())}


def _array(values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _bins(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """The bin of each value; -1 for unknown ones and those outside."""
    places = np.searchsorted(edges, values, side="right") - 1
    places[values == edges[-1]] = len(edges) - 2
    places[~((values >= edges[0]) & (values <= edges[-1]))] = -1
    return places


def _mean(name: str, values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {name: float(values.mean()) if len(values) else None, f"{name}_error": error}
