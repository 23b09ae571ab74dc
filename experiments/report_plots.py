"""Plots of the report, as SVG that takes its text's colour from the page: readable on light and on dark."""

import io
import re

TEXT = "#123457"  # stands for the page's own colour
COLOURS = ("#3b82c4", "#e07b39", "#3f9e6e", "#9a6fc0", "#c94f6d", "#8a8f2a")
NAMES = {"point": "1 point", "point_oracle": "1 point, best of 3", "box": "box", "everything": "everything, best"}


def figure(draw, width: float = 4.2, height: float = 3.1, **axes) -> str:
    """draw(ax) on axes with the labels given -> SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": TEXT, "xtick.color": TEXT,
             "ytick.color": TEXT, "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10,
             "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "svg.hashsalt": "samjax",
             "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "legend.frameon": False, "legend.fontsize": 9}
    with matplotlib.rc_context(style):
        fig, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
        ax.grid(axis="y", alpha=0.25)
        draw(ax)
        ax.set(**axes)
        file = io.StringIO()
        fig.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(fig)
    text = file.getvalue()
    svg = text[text.index("<svg"):].replace(TEXT, "currentColor")
    title = axes.get("title") or axes.get("xlabel") or "plot"
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" ', svg, count=1)


def lines(series: dict[str, list], places: list, **axes) -> str:
    """A line for each of the series, values in 0..1 shown in percent; None is left out."""
    def draw(ax):
        for label, values in series.items():
            known = [(i, 100 * value) for i, value in enumerate(values) if value is not None]
            ax.plot(*zip(*known), marker="o", markersize=4, label=label)
        ax.set_xticks(range(len(places)), places)
        ax.legend()

    return figure(draw, **axes)


def strata(bins: list[dict], title: str, scale: float = 1, scores=("point", "point_oracle", "box")) -> str:
    """Means with their standard errors in bins, and how many objects are in each. scale: of the bins' edges."""
    def draw(ax):
        for score in scores:
            known = [(i, 100 * one[score], 100 * (one.get(f"{score}_error") or 0)) for i, one in enumerate(bins)
                     if one.get(score) is not None]
            if known:
                x, y, error = zip(*known)
                ax.errorbar(x, y, error, marker="o", markersize=4, capsize=2, label=NAMES[score])
        ax.set_xticks(range(len(bins)), [f"{between(one, scale)} ({one['objects']})" for one in bins], fontsize=8.5,
                      rotation=35, ha="right", rotation_mode="anchor")
        ax.legend()

    return figure(draw, height=3.5, title=title, ylabel="mean IoU, %", ylim=(0, 100))


def between(one: dict, scale: float = 1) -> str:
    """A bin's edges."""
    low, high = (None if one[key] is None else f"{scale * one[key]:g}" for key in ("low", "high"))
    return f"≥ {low}" if high is None else f"{low}–{high}"


def reliability(found: dict, title: str) -> str:
    """Actual IoU over the model's own estimate; the area of a dot follows the objects in its bin."""
    def draw(ax):
        most = max(one["objects"] for one in found["bins"])
        x, y = ([100 * one[key] for one in found["bins"]] for key in ("predicted", "actual"))
        ax.plot([0, 100], [0, 100], color=TEXT, linestyle=":", linewidth=1)
        ax.plot(x, y, linewidth=1)
        ax.scatter(x, y, [12 + 200 * one["objects"] / most for one in found["bins"]], color=COLOURS[0], alpha=0.7)
        ax.text(4, 92, f"ECE {100 * found['ece']:.1f}")

    return figure(draw, 3.4, 3.4, title=title, xlabel="predicted IoU, %", ylabel="actual IoU, %", xlim=(0, 101),
                  ylim=(0, 101))


def bars(groups: dict[str, dict[str, float | None]], **axes) -> str:
    """Groups of bars, values in 0..1 shown in percent."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))

    def draw(ax):
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            known = [(place, 100 * values[name]) for place, values in enumerate(groups.values())
                     if values.get(name) is not None]
            ax.bar([place + (i - (len(names) - 1) / 2) * width for place, _ in known], [value for _, value in known],
                   width, label=NAMES.get(name, name))
        ax.set_xticks(range(len(groups)), [name.replace(" ", "\n") for name in groups], fontsize=8)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    return figure(draw, 4.6, 3.8, **axes)


def curves(series: dict[str, tuple], **axes) -> str:
    """Precision over recall: by name the values of both, and the point that is marked."""
    def draw(ax):
        for name, (recall, precision, mark) in series.items():
            line, = ax.plot(recall, precision, label=name)
            ax.plot(*mark, "o", color=line.get_color())
        ax.legend(loc="lower left")

    return figure(draw, 3.6, 3.6, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), **axes)
