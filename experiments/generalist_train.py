"""The training of experiments/generalist.py alone, without a score, for a machine that is there for minutes.

    python experiments/generalist_train.py DATASETS OUT [--seconds 240] [--batch 8] [--objects 8] [--lr 1e-4]

DATASETS is a folder of data sets with a train split; all parts of MobileSAM are trained, in bfloat16, on pictures that
are mirrored, scaled, at times upside down, and lit otherwise. After so many seconds, compiling included, OUT gets the
trained tensors, by their paths in the tree, in parts of at most 15 MiB (tensors_0.npz ...), and training.json;
generalist.py says how they become a model and a record.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

from generalist import NATURAL  # noqa: E402

import convert  # noqa: E402
from samjax.data import Augment, make_pipeline, open_source  # noqa: E402
from samjax.data.sources import NoSplit  # noqa: E402
from samjax.train.anneal import Anneal, annealed, begin, result  # noqa: E402
from samjax.train.optim import trained  # noqa: E402
from samjax.train.recipe import FINETUNE  # noqa: E402
from samjax.train.step import init_state, make_step, training_config  # noqa: E402
from samjax.weights import resolve  # noqa: E402

BEGUN = time.monotonic()
PART = 15 * 2**20
TRIED = 10  # steps that show how long one takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--keep", type=float, default=3.0)
    parser.add_argument("--natural-share", type=float, default=0.35)
    parser.add_argument("--box-noise", type=float, default=FINETUNE.box_noise)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--wait", type=Path, help="when compiled, wait for this file (at most 70 %% of the time)")
    parser.add_argument("--until", type=float, help="end by this time of the clock (seconds since 1970) instead")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stored = convert.read(resolve("mobile_sam"))
    config = replace(stored.config, dtype=args.dtype)
    recipe = replace(FINETUNE, batch=args.batch, objects=args.objects, points=args.rounds, lr=args.lr, warmup=50,
                     train="everything", steps=10**6, box_noise=args.box_noise)
    names, sources = found(args.datasets)
    batches = make_pipeline(sources, training_config(config, recipe), batch=recipe.batch, objects=recipe.objects,
                            mask_size=2 * config.mask_size[0], weights=shares(names, sources, args.natural_share),
                            augment=Augment(flip=0.5, scale=(0.5, 2.0), upside=0.25, light=0.2), workers=args.workers)
    state, steps, seconds = run(config, recipe, stored.params(), batches, args)
    write_parts(args.out, convert.flatten(jax.tree.map(np.asarray, result(state))))
    (args.out / "training.json").write_text(json.dumps({
        "steps": steps, "seconds": seconds, "sets": {n: len(s) for n, s in zip(names, sources)},
        "device": jax.devices()[0].device_kind, "jax": jax.__version__,
        "settings": {name: value for name, value in vars(args).items() if isinstance(value, str | int | float)
                     and name != "until"}}, indent=1) + "\n")


def run(config, recipe, params, batches, args):
    """(state, steps, seconds) of as many steps as there is time for; their number is set once it is known how long one
    takes."""
    anneal, rule = Anneal(recipe.warmup, 0.998, args.keep), partial(trained, recipe)
    state = begin(init_state(config, recipe, jax.device_put(params), jax.random.key(0)), anneal, rule, recipe.steps)
    step = jax.jit(annealed(make_step(config, recipe), recipe, anneal, rule), donate_argnums=0)
    left = lambda: (args.until - time.time()) if args.until else args.seconds - (time.monotonic() - BEGUN)
    batches, whole = iter(batches), left()
    first = next(batches)
    step = step.lower(state, first).compile()
    print(f"{time.monotonic() - BEGUN:6.1f} s compiled", flush=True)
    while args.wait and not args.wait.exists() and left() > 0.3 * whole:
        time.sleep(0.1)
    state, metrics = jax.block_until_ready(step(state, jax.device_put(first)))
    say(1, metrics)
    done, seen, start = 1, [], time.monotonic()
    while left() > 0:
        if done == 1 + TRIED:
            jax.block_until_ready(state)
            each = (time.monotonic() - start) / TRIED
            total = int(left() / each) + done
            print(f"{each:.3f} s a step: {total} steps", flush=True)
            state = replace(state, total=jax.device_put(np.int32(total)))
        state, metrics = step(state, jax.device_put(next(batches)))
        seen.append(metrics)
        done += 1
        if done % 50 == 0:
            say(done, jax.tree.map(lambda *x: np.mean(x), *seen))
            seen = []
    jax.block_until_ready(state)
    return state, done, time.monotonic() - start


def say(step, metrics):
    names = "loss", "iou_first", "iou_oracle", "iou_last", "iou_loss", "grad_norm", "learning_rate", "finite"
    shown = {name: round(float(metrics[name]), 4) for name in names}
    print(f"{time.monotonic() - BEGUN:6.1f} s step {step}: {shown}", flush=True)


def found(folder: Path):
    """Names and train splits of the sets that have one."""
    names, sources = [], []
    for path in sorted(path for path in folder.iterdir() if (path / "meta.json").exists()):
        try:
            sources.append(open_source(path, "train"))
            names.append(path.name)
        except NoSplit:
            continue
    return names, sources


def shares(names, sources, natural: float) -> list[float]:
    """How often each set is drawn: by the root of its pictures, natural ones together as often as given."""
    roots = [len(source) ** 0.5 for source in sources]
    total = {kind: sum(r for r, n in zip(roots, names) if (n in NATURAL) is kind) for kind in (True, False)}
    part = {True: natural, False: 1 - natural}
    return [part[n in NATURAL] * r / total[n in NATURAL] for r, n in zip(roots, names)]


def write_parts(out: Path, tensors: dict) -> None:
    parts, size = [{}], 0
    for name, value in tensors.items():
        value = np.asarray(value)
        if size + value.nbytes > PART and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = value
        size += value.nbytes
    for i, part in enumerate(parts):
        np.savez(out / f"tensors_{i}.npz", **part)


if __name__ == "__main__":
    main()
