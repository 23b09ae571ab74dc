"""Measures of concealed and salient objects: a predicted mask or map of a whole picture against a binary truth.

    measures(prediction, truth)    # {"mae": 0.02, "s": 0.91, "e": 0.95, "e_mean": 0.93, "e_max": 0.95, "wf": 0.88}

A prediction is bool (h, w), or a map (h, w) from 0 to 1 that is taken as it is: nothing rescales it to its own
extremes, as some toolboxes do. The truth is bool (h, w). Each measure is from the formulae of its paper; where these
are undefined the text of each function says what holds. NumPy and SciPy, double precision.
"""

import numpy as np

from samjax.errors import InputError

EPS = np.finfo(np.float64).eps
THRESHOLDS = np.arange(256) / 255  # of the E-measure's curve
NAMES = ("mae", "s", "e", "e_mean", "e_max", "wf")


def measures(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All of them by name: mae, s, e (adaptive threshold; of a binary mask the mask's own), e_mean, e_max, wf.

    Over a set of pictures each is averaged; papers also give the maximum of the averaged `e_curve`, which is not the
    average of the pictures' maxima that e_max is.
    """
    prediction, truth = _checked(prediction, truth)
    curve = e_curve(prediction, truth)
    return {"mae": mae(prediction, truth), "s": s_measure(prediction, truth), "e": e_measure(prediction, truth),
            "e_mean": float(curve.mean()), "e_max": float(curve.max()), "wf": weighted_f(prediction, truth)}


def mae(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error, 0 to 1; 0 is best."""
    prediction, truth = _checked(prediction, truth)
    return float(np.abs(prediction - truth).mean())


def s_measure(prediction: np.ndarray, truth: np.ndarray, alpha: float = 0.5) -> float:
    """Structure measure, 0 to 1: alpha times the object-aware and 1 - alpha times the region-aware similarity.

    Fan et al., "Structure-measure: a new way to evaluate foreground maps", ICCV 2017; lambda 0.5, deviations of
    samples (n - 1). Of an empty truth it is 1 minus the prediction's mean, of a full one that mean.
    """
    prediction, truth = _checked(prediction, truth)
    share = truth.mean()
    if share in (0, 1):
        return float(prediction.mean() if share else 1 - prediction.mean())
    objects = share * _object(prediction[truth]) + (1 - share) * _object(1 - prediction[~truth])
    return float(max(alpha * objects + (1 - alpha) * _regions(prediction, truth), 0.0))


def e_measure(prediction: np.ndarray, truth: np.ndarray, threshold: float | None = None) -> float:
    """Enhanced alignment measure of the prediction cut at a threshold, 0 to 1.

    Fan et al., "Enhanced-alignment measure for binary foreground map evaluation", IJCAI 2018: the mean over the
    w h pixels (the authors' code divides by w h - 1). Foreground is what is above 0 and reaches the threshold; default
    the adaptive one, twice the prediction's mean and at most 1. Of an empty truth it is the share of background in
    the prediction, of a full one that of foreground.
    """
    prediction, truth = _checked(prediction, truth)
    cut = min(2 * prediction.mean(), 1.0) if threshold is None else threshold
    found = (prediction >= cut) & (prediction > 0)
    return float(_alignment(*(np.array([count]) for count in (np.count_nonzero(found & truth), found.sum())), truth)[0])


def e_curve(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """E-measures (256,) of the prediction cut at 0/255, 1/255, ... 255/255. At the first everything is foreground."""
    prediction, truth = _checked(prediction, truth)
    reached = np.searchsorted(THRESHOLDS, prediction.ravel(), side="right")  # how many thresholds each pixel reaches
    counts = [np.bincount(levels, minlength=257)[:0:-1].cumsum()[::-1] for levels in (reached[truth.ravel()], reached)]
    return _alignment(*counts, truth)


def weighted_f(prediction: np.ndarray, truth: np.ndarray, beta2: float = 1.0) -> float:
    """Weighted F-measure, 0 to 1. Margolin et al., "How to evaluate foreground maps?", CVPR 2014.

    An error next to a found pixel counts less (Gaussian of 7 x 7, sigma 5; beyond the picture there is no error, as in
    the authors' code), one far from the object more. Of several nearest object pixels the first down the columns
    counts. Of an empty truth it is 1 for a prediction without anything, else 0. beta2 weighs recall; 1 as in that code.
    """
    from scipy import ndimage

    prediction, truth = _checked(prediction, truth)
    if not truth.any():
        return float(not prediction.any())
    error = np.abs(prediction - truth)
    distance, nearest = ndimage.distance_transform_edt(~truth, return_indices=True)
    row = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5.0**2))
    spread = error[tuple(nearest)]  # of the background, the error of its nearest object pixel
    for axis in (0, 1):
        spread = ndimage.correlate1d(spread, row / row.sum(), axis, mode="constant")
    inside = np.minimum(error, spread)[truth]
    outside = (error * (2 - np.exp(np.log(0.5) / 5 * distance)))[~truth]
    hits = len(inside) - inside.sum()
    recall, precision = 1 - inside.mean(), hits / (EPS + hits + outside.sum())
    return float((1 + beta2) * recall * precision / (EPS + recall + beta2 * precision))


def _checked(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction, np.float64), np.asarray(truth)
    if truth.dtype != bool or truth.ndim != 2 or not truth.size:
        raise InputError(f"the truth must be a bool array (h, w) with pixels, not {truth.dtype} {truth.shape}")
    if prediction.shape != truth.shape:
        raise InputError(f"the prediction has shape {prediction.shape}, the truth {truth.shape}: they must be alike")
    if not (prediction.min() >= 0 and prediction.max() <= 1):
        raise InputError("a prediction is a mask or a map from 0 to 1: scale it, or cut logits at 0")
    return prediction, truth


def _object(values: np.ndarray) -> float:
    """Similarity of an object's values (n,) to 1 everywhere."""
    mean, deviation = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + EPS)


def _regions(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Similarity of the four parts that meet at the truth's centre, by their sizes."""
    rows, columns = (np.nonzero(truth)[axis] for axis in (0, 1))
    y, x = (int(np.floor(places.mean() + 0.5)) + 1 for places in (rows, columns))  # the centre ends the first part
    parts = [(ys, xs) for ys in (slice(0, y), slice(y, None)) for xs in (slice(0, x), slice(x, None))]
    return sum(_ssim(prediction[part], truth[part].astype(float)) * truth[part].size for part in parts
               if truth[part].size) / truth.size


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two parts."""
    (mean_a, off_a), (mean_b, off_b) = _centred(a), _centred(b)
    count = a.size - 1 + EPS
    var_a, var_b, shared = ((one * other).sum() / count for one, other in ((off_a, off_a), (off_b, off_b),
                                                                           (off_a, off_b)))
    above, below = 4 * mean_a * mean_b * shared, (mean_a**2 + mean_b**2) * (var_a + var_b)
    if above != 0:
        return above / (below + EPS)
    return float(below == 0)


def _centred(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean and differences from it, both exact where all values are equal: zero decides cases of `_ssim`."""
    mean = values.flat[0] if values.min() == values.max() else values.mean()
    return mean, values - mean


def _alignment(hits: np.ndarray, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """E-measures (k,) of masks with `found` (k,) pixels, `hits` of which are in the truth.

    Masks and truths have two values each, so that the matrix of the paper has four, whose numbers are known.
    """
    total, wanted = truth.size, int(np.count_nonzero(truth))
    if wanted in (0, total):
        return (found if wanted else total - found) / total
    score = np.zeros(len(found))
    for in_mask in (0, 1):
        for in_truth in (0, 1):
            number = {(1, 1): hits, (1, 0): found - hits, (0, 1): wanted - hits,
                      (0, 0): total - found - wanted + hits}[in_mask, in_truth]
            a, b = in_mask - found / total, in_truth - wanted / total
            score += number * (2 * a * b / (a**2 + b**2 + EPS) + 1) ** 2 / 4
    return score / total
