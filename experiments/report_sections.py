"""What the report shows of each experiment: HTML made of its JSON."""

import html
from collections.abc import Iterator

import detections as detections_of
import edges as edges_of
import proposals as proposals_of
import protocols as protocols_of
import report_plots as plots
import suite
import tuned as tuned_of

PERCENT = ("point", "point_oracle", "box", "everything")
LONG = {"made", "versions", "machine", "model", "settings", "commit", "sets", "pictures", "rows", "columns", "worst",
        "seconds"}
TITLES = {"relative_area": "share of the picture, %", "contrast": "contrast of the boundary (CIELAB)",
          "solidity": "solidity (area / convex hull)", "thinness": "thinness (area / width²)"}


def table(heading: list[str], rows: list[list]) -> str:
    """It scrolls within itself where the page is too narrow."""
    cell = lambda tag, value: f"<{tag}>{html.escape(shown(value))}</{tag}>"
    head = "".join(cell("th", value) for value in heading)
    body = "".join(f"<tr>{''.join(cell('td' if i else 'th', value) for i, value in enumerate(row))}</tr>"
                   for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{suite.percent(value):.1f}"


def gallery(*figures: str) -> str:
    return f'<div class="gallery">{"".join(f"<figure>{each}</figure>" for each in figures)}</div>'


def folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def weaknesses(found: dict) -> Iterator[str]:
    if not found.get("strata"):
        return
    yield (f"<p>{found['objects']:,} objects. The numbers in brackets say how many are in a bin; the bars are standard "
           "errors.</p>")
    scale = {"relative_area": 100}
    yield gallery(*(plots.strata(bins, TITLES.get(name, name), scale.get(name, 1))
                    for name, bins in found["strata"].items() if bins))
    yield gallery(*(plots.reliability(one, f"Calibration, {plots.NAMES[name]}")
                    for name, one in found["reliability"].items() if one["bins"]))
    for name, bins in found["strata"].items():
        yield folded(f"Table: {TITLES.get(name, name)}", table(
            ["bin", "objects", "1 point", "best of 3", "box", "says of point", "says of box", "ECE, point", "ECE, box"],
            [[plots.between(one, scale.get(name, 1)), one["objects"], *(percent(one.get(key)) for key in (
                *PERCENT[:3], "point_predicted", "box_predicted", "ece_point", "ece_box"))] for one in bins]))
    yield table(["set", "domain", "pictures", "objects", "1 point", "best of 3", "box", "ECE, point", "ECE, box"],
                [[name, one["domain"], suite.part_of(one), one["objects"], *(percent(one[key]) for key in PERCENT[:3]),
                  *map(percent, one["ece"].values())]
                 for name, one in sorted(found["means"].items(), key=lambda item: item[1]["box"])])


def domains(found: dict) -> Iterator[str]:
    if not found.get("domains"):
        return
    scores = lambda one: {name: one[name] for name in PERCENT}
    yield gallery(plots.bars({name: scores(one) for name, one in found["domains"].items()},
                             title="Mean of the sets' mean IoU", ylabel="%", ylim=(0, 100)))
    yield table(["domain", "sets", "objects", "1 point", "best of 3", "box", "everything"],
                [[name, one["sets"], one["objects"], *map(percent, scores(one).values())]
                 for name, one in found["domains"].items()])
    yield table(["set", "domain", "pictures", "objects", "1 point", "best of 3", "box", "everything"],
                [[name, one["domain"], suite.part_of(one), one["objects"], *map(percent, scores(one).values())]
                 for name, one in found["means"].items()])
    concealed = [[name, prompt, *(percent(values[key]) for key in ("mae", "s", "e", "wf"))]
                 for name, one in found["means"].items() for prompt, values in one.get("measures", {}).items()]
    if concealed:
        yield "<h3>Concealed objects, by the picture</h3>"
        yield table(["set", "prompt", "MAE", "S", "E", "weighted F"], concealed)


def robustness(found: dict) -> Iterator[str]:
    means = found.get("means")
    if not means:
        return
    kinds = found["settings"]["strengths"]
    series = lambda prompt, kind: [means[prompt]["clean"], *(means[prompt][f"{kind} {i}"] for i in range(1, 6))]
    yield gallery(*(plots.lines({kind: series(prompt, kind) for kind in kinds}, ["clean", *"12345"],
                                title=f"{plots.NAMES[prompt]}", xlabel="strength", ylabel="mean IoU, %", ylim=(0, 100))
                    for prompt in means))
    yield table(["", "clean", *"12345"], [[f"{plots.NAMES[prompt]}, {kind}", *map(percent, series(prompt, kind))]
                                         for prompt in means for kind in kinds])
    yield table(["strength", *"12345"], [[kind, *values] for kind, values in kinds.items()])
    yield table(["set", "pictures"], [[name, suite.part_of(one)] for name, one in found["shares"].items()])


def resolution(found: dict) -> Iterator[str]:
    means = found.get("means")
    if not means:
        return
    sizes = [f"{size}" for size in means]
    times = lambda ax: ax.plot(sizes, [one["seconds_encode"] for one in means.values()], marker="o")
    yield gallery(plots.lines({plots.NAMES[name]: [one[name] for one in means.values()] for name in PERCENT[:3]}, sizes,
                              title="Scores by input size", xlabel="px", ylabel="mean IoU, %", ylim=(0, 100)),
                  plots.figure(times, title="Seconds to encode a picture", xlabel="px", ylabel="s", yscale="log"))
    yield table(["input, px", "pictures", "objects", "1 point", "best of 3", "box", "s to encode", "s an object"],
                [[size, one["pictures"], one["objects"], *(percent(one[name]) for name in PERCENT[:3]),
                  one["seconds_encode"], one["seconds_object"]] for size, one in means.items()])
    sets = list(dict.fromkeys(name for one in means.values() for name in one["sets"]))
    most = lambda name: max((one["sets"][name] for one in means.values() if name in one["sets"]),
                            key=lambda each: each["pictures"])
    yield folded("Box, by set", table(["set", "pictures", *sizes], [
        [name, suite.part_of(most(name)), *(percent(one["sets"].get(name, {}).get("box")) for one in means.values())]
        for name in sets]))


def protocols(found: dict) -> Iterator[str]:
    means = protocols_of.means(found)
    if len(means) == 1:  # that of no sets
        return
    total, counts = means["mean of the sets"], found["settings"]["points"]
    names = ["point" if count == 1 else f"point_{count}" for count in counts]
    series = {"most confident": [total[name] for name in names],
              "best of 3": [total[f"{name}_oracle"] for name in names], "box": [total["box"]] * len(names)}
    yield gallery(plots.lines(series, [f"{count}" for count in counts], title="Mean of the sets' means",
                              xlabel="points", ylabel="mean IoU, %", ylim=(0, 100)))
    for columns in protocols_of.tables_of(protocols_of.scores_in(total)):
        heading = [key.replace("_", " ").replace("oracle", "best of 3") for key in columns]
        yield table(["set", "pictures", "objects", *heading],
                    [[name, suite.part_of(one), one["objects"], *(percent(one[key]) for key in columns)]
                     for name, one in means.items()])
    sizes = {size: one for size, one in protocols_of.by_size(found).items() if one["objects"]}
    if sizes:
        yield table(["size", "objects", "box", "noised box", "refined box"],
                    [[size, one["objects"], *(percent(one[key]) for key in protocols_of.BOXES)]
                     for size, one in sizes.items()])


def detections(found: dict) -> Iterator[str]:
    yield table(["boxes", "pictures", "objects", *map(detections_of.heading, detections_of.SHOWN)], [
        [name, suite.part_of(one | {"of": found["settings"]["of"]}), one["objects"],
         *(percent(one["summary"][key]) for key in detections_of.SHOWN)]
        for name, one in found["runs"].items()])


def edges(found: dict) -> Iterator[str]:
    found = edges_of.upgraded(found)
    found |= edges_of.summed_up(found)
    series, digits = {}, lambda one: [None if one.get(key) is None else f"{one[key]:.3f}" for key in edges_of.SHOWN]
    for name, one in found["summary"].items():
        every = edges_of.counts_of(found["methods"][name])
        total = sum(every[1:], every[0])
        there = total.found > 0
        series[name] = total.recall[there], total.precision[there], (one["ods_recall"], one["ods_precision"])
    heading = ["pictures", "ODS", "OIS", "AP", "R50"]
    yield gallery(plots.curves(series, title="Edges"))
    yield table(["method", *heading, "s a picture"], [
        *([name, suite.part_of(one), *digits(one), one["median_seconds"]] for name, one in found["summary"].items()),
        *([f"{name}, published", None, *digits(one), None] for name, one in found["paper"].items())])
    if edges_of.differ(found):
        common = found["common"]
        yield f"<p>The same, over the {common['pictures']:,} pictures that all of the methods have:</p>"
        yield table(["method", *heading], [[name, common["pictures"], *digits(one)]
                                           for name, one in common["methods"].items()])


def proposals(found: dict) -> Iterator[str]:
    rows = proposals_of.summed_up(proposals_of.upgraded(found))["summary"]
    names = [key for key in dict.fromkeys(key for row in rows for key in row)
             if key not in ("set", "preset", "pictures", "of")]
    yield table(["set", "preset", "pictures", *(key.replace("_", " ").replace("ar ", "AR@") for key in names)],
                [[row["set"], row["preset"], suite.part_of(row), *(row[key] for key in names)] for row in rows])


def tuned(found: dict) -> Iterator[str]:
    titles = dict(zip(tuned_of.PAIRED, ("1 point", "best of 3", "box", "ECE, point", "ECE, box")))

    def columns(rows: list) -> str:
        """rows: of a name, how many objects, and both scores."""
        names = [name for name in titles if any(name in before for _, _, before, _ in rows)]
        heading = [titles[name] + when for name in names for when in ("", ", tuned")]
        return table(["", "objects", *heading], [[first, objects, *(percent(one.get(name)) for name in names for one in
                                                                    (before, after))]
                                                 for first, objects, before, after in rows])

    for name, model in found["models"].items():
        yield f"<h3>{html.escape(name)}</h3>"
        yield columns([(each, suite.part_of(one, "objects"), one["before"], one["after"])
                       for each, one in model["sets"].items()])
        for kind, bins in model["strata"]["before"].items():
            scale, pairs = 100 if kind == "relative_area" else 1, zip(bins, model["strata"]["after"][kind])
            yield folded(TITLES.get(kind, kind), columns([(plots.between(a, scale), a["objects"], a, b)
                                                          for a, b in pairs]))


def scores_val(found: dict) -> Iterator[str]:
    names = ("point", "point_oracle", "box")
    yield table(["set", "pictures", "objects", *(f"{plots.NAMES[name]}{who}" for name in names
                                                 for who in ("", ", official")), "means differ", "objects differ"],
                [[name, suite.part_of(one), one["objects"], *(f"{one[who][key]:.1f}" for key in names
                                                              for who in ("ours", "official")),
                  f"{one['worst_mean']:.3f}", f"{one['worst_object']['difference']:.2f}"]
                 for name, one in found["sets"].items()])


def speed(found: dict) -> Iterator[str]:
    rows = []
    for case, makers in found["cases"].items():
        for name, one in makers.items():
            if isinstance(one, dict) and "median" in one:
                ratio = one.get("samjax_over_this", {}).get("median")
                rows.append([case, name, f"{one['median']:.3f}", None if ratio is None else f"{1 / ratio:.2f}",
                             one.get("peak_mb", {}).get("call")])
    yield table(["case", "implementation", "s, median", "samjax is so many times as fast", "peak MB"], rows)


def anything(found: dict) -> Iterator[str]:
    """Of a result that nothing is known of: its plain values, and a table for each group of things that are alike."""
    plain = {name: value for name, value in found.items() if isinstance(value, (int, float, str)) and name not in LONG}
    if plain:
        yield table(["", ""], [[name, value] for name, value in plain.items()])
    for name, value in found.items():
        if name not in LONG or name in ("sets", "pictures", "rows"):
            yield from _nested(name, value)


def _nested(name: str, value, depth: int = 0) -> Iterator[str]:
    """Tables of dicts of dicts and of lists of dicts, however deep they lie."""
    items = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    rows = [(key, flat(each)) for key, each in items if isinstance(each, dict)]
    plain = {key: each for key, each in items if isinstance(each, (int, float, str))} if isinstance(value, dict) else {}
    heading = list(dict.fromkeys(column for _, row in rows for column in row))
    if any(row for _, row in rows) and len(heading) <= 24:
        made = table([name, *heading], [[key, *(row.get(column) for column in heading)] for key, row in rows])
        yield folded(f"{name}: {len(rows)} rows", made) if len(rows) > 30 else made
    elif plain:
        yield table([name, ""], [[key, each] for key, each in plain.items()])
    if depth < 2:
        for key, each in items:
            deeper = each.items() if isinstance(each, dict) else ()
            for inner, content in deeper:
                if isinstance(content, (dict, list)) and inner not in LONG and inner not in heading:
                    yield from _nested(f"{name}, {key}, {inner}", content, depth + 1)


def flat(values: dict) -> dict:
    """The plain values of a dict, and of the dicts in it with few plain values."""
    out = {}
    for key, value in values.items():
        if key in LONG:
            continue
        if isinstance(value, (int, float, str)) or value is None:
            out[key] = value
        elif isinstance(value, dict) and 0 < len(value) <= 4 and all(
                isinstance(each, (int, float)) for each in value.values()):
            out |= {f"{key} {inner}": each for inner, each in value.items()}
    return out


KNOWN = {"weaknesses": weaknesses, "weaknesses_train": weaknesses, "tuned": tuned, "domains": domains,
         "robustness": robustness, "resolution": resolution, "scores_val": scores_val, "edges": edges,
         "proposals": proposals, "protocols": protocols, "detections": detections, "speed_cpu": speed,
         "everything_cpu": speed}
