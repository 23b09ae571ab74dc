"""One HTML page of all results: tables and plots of what experiments/results holds. It opens without a network.

    python experiments/report.py [--results experiments/results] [--worst out/worst] [--out out/report.html]

Results that are not there are left out. Each experiment's file says at its top what it does; that is the page's text.
--worst is the folder of pictures that experiments/weaknesses.py makes. The pictures in the page are others' data: it is
not a part of the project. Needs matplotlib (the extra "plots"); seconds.
"""

import ast
import base64
import html
import json
import os
import re
import sys
from pathlib import Path

import records
import report_sections
import suite

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FIRST = ("domains", "weaknesses", "protocols", "detections", "edges", "proposals", "resolution", "robustness", "tuned",
         "scores_val", "weaknesses_train")
TITLES = {"scores_val": "Scores beside the official code's", "speed_cpu": "Speed on a CPU",
          "weaknesses": "Where it is weak",
          "weaknesses_train": "Where it is weak: train splits", "tuned": "Before and after fine-tuning",
          "protocols": "1 to 9 points, and boxes", "detections": "Instance segmentation from true boxes",
          "everything_cpu": "Speed of everything on a CPU",
          "domains": "By domain and prompt", "resolution": "By input resolution",
          "robustness": "Under noise, blur, JPEG, brightness and contrast"}
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2430; --soft: #5b6675; --line: #d9dee6; --band: #f4f6f9;
  --link: #1f6fb2 }
@media (prefers-color-scheme: dark) { :root { --back: #14181f; --text: #e4e8ee; --soft: #98a3b3; --line: #303846;
  --band: #1c222b; --link: #6db3ee } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem;
  padding-top: .75rem; border-top: 1px solid var(--line) } h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem }
p, nav { max-width: 46rem } .soft, figcaption { color: var(--soft); font-size: .85rem } a { color: var(--link) }
nav a { display: inline-block; padding: .3rem .8rem .3rem 0 }
.scroll { overflow-x: auto; margin: .75rem 0; -webkit-overflow-scrolling: touch }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; overflow-wrap: normal;
  font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--back) }
thead th { color: var(--soft); font-weight: 600 } tbody tr:nth-child(even) > * { background: var(--band) }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
figure { margin: 0 } svg { max-width: 100%; height: auto } img { width: 100%; height: auto; display: block }
details { margin: .5rem 0 } summary { cursor: pointer; padding: .35rem 0; color: var(--link) }
pre { overflow-x: auto; background: var(--band); padding: .6rem; font-size: .8rem }
"""


def main():
    parser = suite.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
    parser.add_argument("--worst", type=Path, default=ROOT / "out" / "worst")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "report.html")
    args = parser.parse_args()
    from samjax.errors import InputError

    found = {path.stem: records.read(path) for path in sorted(args.results.glob("*.json"))}
    if not found:
        raise InputError(f"{args.results} holds no results")
    order = sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    text = page([(name, section(name, found[name], args.worst)) for name in order])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(args.out.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, args.out)
    print(f"{args.out}: {len(order)} experiments, {len(text) / 1e6:.1f} MB")


def page(sections: list[tuple[str, str]]) -> str:
    links = " ".join(f'<a href="#{name}">{title(name)}</a>' for name, _ in sections)
    body = "".join(f'<section id="{name}">{content}</section>' for name, content in sections)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>samjax: results</title>'
            f"<style>{STYLE}</style></head><body><h1>samjax: what was measured</h1><nav>{links}</nav>{body}"
            "</body></html>\n")


def section(name: str, found: dict, worst: Path) -> str:
    about, details = described(name)
    parts = [f"<h2>{title(name)}</h2>", f"<p>{html.escape(about)}</p>" if about else "", stamp(found)]
    parts += report_sections.KNOWN.get(name, report_sections.anything)(found)
    if name == "weaknesses" and (worst / "worst.json").exists():
        parts.append(gallery(worst))
    if details:
        parts.append(report_sections.folded("How it was made", f"<pre>{html.escape(details)}</pre>"))
    return "\n".join(parts)


def title(name: str) -> str:
    return html.escape(TITLES.get(name) or name.replace("_", " ").capitalize())


def described(name: str) -> tuple[str, str]:
    """First sentence and all of the text at the top of the experiment that writes this result."""
    experiments = ROOT / "experiments"
    path = experiments / f"{name}.py"
    if not path.exists():  # the result has another name: the experiment that speaks of it
        path = next((each for each in sorted(experiments.glob("*.py")) if re.search(
            rf"results/{re.escape(name)}\.json", each.read_text())), path)
    if not path.exists():
        return "", ""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()), text


def stamp(found: dict) -> str:
    """What it was made with, in one line."""
    model, made = found.get("model"), found.get("made")
    words = [model if isinstance(model, str) else f"{model['name']} ({model['sha256'][:12]})" if isinstance(model, dict)
             and {"name", "sha256"} <= set(model) else ""]
    for one in made if isinstance(made, list) else [found]:
        words.append(", ".join(each for each in by_what(one) if each))
    words += [f"{key} {str(value)[:24]}" for key, value in found["settings"].items()
              if isinstance(value, (str, int, float))
              ] if isinstance(found.get("settings"), dict) else []
    return f'<p class="soft">{html.escape(" · ".join(word for word in words if word))}</p>' if any(words) else ""


def by_what(one: dict) -> list[str]:
    """Versions, commit and machine of a result, or of a part of its pictures."""
    versions, machine = (one.get(key) for key in ("versions", "machine"))
    words = [f"{key} {versions[key]}" for key in ("samjax", "jax") if isinstance(versions, dict) and key in versions]
    words += [f"commit {one['commit'][:9]}" if isinstance(one.get("commit"), str) else ""]
    words += [f"{machine['cores']} cores" if isinstance(machine, dict) and "cores" in machine else ""]
    if isinstance(one.get("pictures"), int) and "versions" in one:
        words.append(f"{one['pictures']:,} pictures" + (f" ({one['note']})" if "note" in one else ""))
    return words


def gallery(folder: Path) -> str:
    """The worst objects: picture, truth and answer."""
    from worst_sheet import caption

    figures = []
    for number, each in enumerate(json.loads((folder / "worst.json").read_text()), 1):
        data = base64.b64encode((folder / each["file"]).read_bytes()).decode()
        text = html.escape(f"{number}. {caption(each)}")
        figures.append(f'<figure><img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{data}">'
                       f"<figcaption>{text}</figcaption></figure>")
    return ('<h3>The worst objects from their box</h3><p class="soft">The picture with the box, the truth (green), the '
            f'answer (pink).</p><div class="gallery">{"".join(figures)}</div>')


if __name__ == "__main__":
    suite.run(main)
