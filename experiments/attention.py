"""Which attention is right, and which is quickest, on the machine at hand: every implementation of `attend_grid`.

    python experiments/attention.py [--models vit_b,vit_h] [--batch 1,8] [--dtypes bfloat16,float32] [--rounds 5]

Hardware: any that jax finds; meant for a TPU or an NVIDIA GPU, on a CPU only with a small --grid. Minutes: two for
eight cases of four implementations on an H200. Result: experiments/results/attention_DEVICE.json, written after each
line of the table.

A case is a model's heads over its global grid (64 x 64) or that grid in its windows (25 of 14 x 14 an image), from the
joint projection's products to the joined heads. For each implementation: milliseconds of the forward pass and of
forward and backward together (all four gradients), medians over rounds in which the implementations take turns;
TFLOP/s of the forward pass (4 x tokens^2 x width a head, without padding); the programs' temporary memory; and the
largest error, over the largest value, of the output and of each gradient against the plain form in float32 (multiplied
exactly, one image, two heads). The bar is 1e-5 in float32 and 2e-2 in bfloat16. "xla" multiplies float32 as the
platform does by default (TF32 on a GPU, bfloat16 on a TPU) and may miss it there. What cannot run says why.

To choose: `dataclasses.replace(config, attention="triton")`. What is right and quickest for windows and global blocks
together on a platform belongs into AUTO of samjax/model/attention_windows.py.
"""

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from speed import commit, write

from samjax.config import VIT_B, VIT_H, VIT_L
from samjax.model.attention_windows import attend_grid

MODELS = {config.name: config.encoder for config in (VIT_B, VIT_L, VIT_H)}
IMPLEMENTATIONS = ["xla", "triton", "cudnn", "pallas", "splash"]
BARS = {"float32": 1e-5, "bfloat16": 2e-2}
SHORTEST = 0.1  # seconds: a turn repeats its call until it has lasted about this long
RESULTS = ("out", "qkv", "bias", "rel_h", "rel_w")


def main():
    args = parse()
    device = jax.devices()[0]
    out = args.out or Path(__file__).parent / "results" / f"attention_{device.device_kind.replace(' ', '_')}.json"
    report = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "commit": commit(),
              "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "rounds": args.rounds, "rows": []}
    print(f"{report['device']}, jax {report['jax']}\n{'case':34}{'attention':18}{'forward ms':>11}{'both ms':>10}"
          f"{'TFLOP/s':>9}{'MiB':>8}  errors of output, gradients")
    for case in cases(args):
        for row in measure(case, args):
            report["rows"].append(row)
            show(row)
            write(out, report)
    print(f"written to {out}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    split = lambda text: text.split(",")
    parser.add_argument("--models", type=split, default=["vit_b", "vit_h"], help=",".join(MODELS))
    parser.add_argument("--kinds", type=split, default=["global", "windows"])
    parser.add_argument("--dtypes", type=split, default=["bfloat16", "float32"])
    parser.add_argument("--batch", type=lambda text: [int(b) for b in text.split(",")], default=[1, 8])
    parser.add_argument("--grid", type=int, default=64, help="side of the grid of tokens")
    parser.add_argument("--implementations", type=split, default=IMPLEMENTATIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for name, given, known in (("model", args.models, MODELS), ("kind", args.kinds, ("global", "windows")),
                               ("dtype", args.dtypes, BARS)):
        if set(given) - set(known):
            parser.error(f"no such {name}: {', '.join(sorted(set(given) - set(known)))}; there are {', '.join(known)}")
    return args


class Case(NamedTuple):
    """A batch of grids of side x side tokens, heads of width d, windows (0: none)."""

    name: str
    batch: int
    side: int
    heads: int
    d: int
    window: int
    dtype: str

    @property
    def operations(self) -> float:
        each = self.window or self.side
        windows = (-(-self.side // each)) ** 2
        return 4.0 * self.batch * windows * self.heads * self.d * each**4


def cases(args):
    for model in args.models:
        vit = MODELS[model]
        for kind in args.kinds:
            for dtype in args.dtypes:
                for batch in args.batch:
                    yield Case(f"{model} {kind} {dtype} x {batch}", batch, args.grid, vit.heads, vit.width // vit.heads,
                               vit.window if kind == "windows" else 0, dtype)


def measure(case, args):
    """A row for each implementation."""
    given = arrays(case)
    rows, calls = [], {}
    for implementation in args.implementations:
        row = {"case": case.name, "shape": case[1:6], "dtype": case.dtype, "attention": implementation}
        rows.append(row)
        try:
            row["errors"] = errors(implementation, case._replace(batch=1, heads=2))
            row["right"] = max(row["errors"].values()) <= BARS[case.dtype]
            for part, function in (("forward", forward), ("both", both)):
                compiled = jax.jit(partial(function, case, implementation)).lower(*given).compile()
                row[f"{part}_mib"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
                calls[implementation, part] = partial(compiled, *given)
        except Exception as error:  # what a card refuses is a result too
            row["missing"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            calls = {key: call for key, call in calls.items() if key[0] != implementation}
    seconds = in_turns(calls, args.rounds)
    for row in rows:
        for part in ("forward", "both"):
            if (row["attention"], part) in seconds:
                row[f"{part}_ms"] = 1e3 * statistics.median(seconds[row["attention"], part])
        if "forward_ms" in row:
            row["tflops"] = case.operations / row["forward_ms"] / 1e9
    return rows


def arrays(case):
    """Products, a bias, and vectors of relative positions small enough for a softmax like a model's."""
    random = np.random.default_rng(0)
    c, each = case.heads * case.d, case.window or case.side
    draw = lambda scale, *shape: jnp.asarray(scale * random.standard_normal(shape, np.float32), case.dtype)
    return (draw(1, case.batch, case.side, case.side, 3 * c), draw(0.3, 3 * c),
            *(draw(0.3, each, each, case.d) for _ in range(2)))


def forward(case, implementation, *given):
    return attend_grid(*given, case.heads, case.window, given[0].dtype.name, implementation)


def both(case, implementation, *given):
    """The output and the gradients of all four arrays."""
    def loss(given):
        out = forward(case, implementation, *given)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    gradients, out = jax.grad(loss, has_aux=True)(given)
    return out, *gradients


def errors(implementation, case):
    """The largest error of each result over its largest value."""
    given = arrays(case)
    found = jax.jit(partial(both, case, implementation))(*given)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(partial(both, case, "reference"))(*(x.astype(jnp.float32) for x in given))
    found, exact = ([np.asarray(x, np.float64) for x in xs] for xs in (found, exact))
    return {name: float(np.abs(a - b).max() / np.abs(b).max()) for name, a, b in zip(RESULTS, found, exact)}


def in_turns(calls, rounds):
    """{key: seconds a call in each round}; the order rotates, so that a drift of the machine touches all."""
    keys, seconds = list(calls), {key: [] for key in calls}
    repeats = {}
    for key in keys:
        timed(calls[key], 1)
        repeats[key] = max(1, round(SHORTEST / timed(calls[key], 1)))
    for turn in range(rounds):
        shift = turn % max(len(keys), 1)
        for key in keys[shift:] + keys[:shift]:
            seconds[key].append(timed(calls[key], repeats[key]))
    return seconds


def timed(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def show(row):
    if "missing" in row:
        print(f"{row['case']:34}{row['attention']:18}missing: {row['missing']}", flush=True)
        return
    listed = " ".join(f"{error:.0e}" for error in row["errors"].values())
    print(f"{row['case']:34}{row['attention']:18}{row['forward_ms']:11.3f}{row['both_ms']:10.3f}{row['tflops']:9.2f}"
          f"{row['both_mib']:8.0f}  {listed}{'' if row['right'] else '  ABOVE THE BAR'}", flush=True)


if __name__ == "__main__":
    main()
