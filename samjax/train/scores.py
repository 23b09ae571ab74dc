"""What a fine-tuning is judged by: mean IoU of prompts of several kinds, one number of them, a table for people."""

from collections.abc import Callable, Sequence

from samjax.data.sources import Source
from samjax.evaluate import score
from samjax.predict import Sam

NAMES = {"point": "one point", "point_oracle": "one point, best of three", "box": "box"}
KINDS = {"both": ("point", "box"), "point": ("point",), "box": ("box",)}  # of Options.prompts: what they are scored by
HARM = 3.0  # so many times counts what a kind of prompt loses


def mean_scores(sam: Sam, sources: Sequence[Source], progress: Callable | None = None) -> dict[str, float]:
    """Mean IoU in percent, means over the objects of all sources, and how many these are."""
    rows = [row for source in sources for row in score(sam, source, progress=progress).rows]
    found = {name: 100.0 * sum(row.scores[name] for row in rows) / len(rows) for name in NAMES}
    return found | {"objects": len(rows)}


def weighed(scores: dict, start: dict, kinds: Sequence[str]) -> dict:
    """Scores with the one, "score", that the best model is chosen by: the mean over kinds of prompt. What one of them
    loses to the start counts HARM times, because points may gain ten times what boxes do."""
    lost = sum(max(start[kind] - scores[kind], 0.0) for kind in kinds)
    score = (sum(scores[kind] for kind in kinds) - (HARM - 1) * lost) / len(kinds)
    return {"score": score} | {name: scores[name] for name in NAMES}


def table(report: dict) -> str:
    """The untuned scores beside the tuned ones, for people."""
    lines = [("mean IoU, %", "untuned", "tuned", "")]
    for name, before in report["untuned"].items():
        after = report["tuned"][name]
        lines.append((f"{name} ({before['pictures']} pictures, {before['objects']} objects)", "", "", ""))
        lines += [(f"  {NAMES[key]}", f"{before[key]:.1f}", f"{after[key]:.1f}", f"{after[key] - before[key]:+.1f}")
                  for key in NAMES if key in before]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)
