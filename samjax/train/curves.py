"""A picture of a run's metrics, where matplotlib is installed."""

import os
from pathlib import Path

from samjax.train.metrics import read

PLAIN = ("loss", "iou_first", "iou_last")  # of a step


def draw(out) -> Path | None:
    """out/curves.png of out/metrics.jsonl; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps, evaluations = read(Path(out) / "metrics.jsonl")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in PLAIN:
        left.plot([line["step"] for line in steps], _smooth([line.get(name) for line in steps]), label=name)
    left.set(xlabel="step", title="training (running mean)")
    for name in evaluations[0]["val"] if evaluations else ():
        right.plot([line["step"] for line in evaluations], [line["val"].get(name) for line in evaluations],
                   marker=".", label=name)
    right.set(xlabel="step", title="validation, mean IoU (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path = Path(out) / "curves.png"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    FigureCanvasAgg(figure).print_png(temporary)
    os.replace(temporary, path)
    return path


def _smooth(values: list, span: int = 20) -> list:
    """The running mean of the last `span` numbers."""
    smooth = []
    for i in range(len(values)):
        near = [value for value in values[max(0, i + 1 - span):i + 1] if value is not None]
        smooth.append(sum(near) / len(near) if near else float("nan"))
    return smooth
