"""The full table of speed on an accelerator: samjax beside PyTorch, case by case, in one run.

    python experiments/accelerator.py [--minutes 9] [--only encoder_vit_h_8,train_vit_h] [--image examples/coffee.jpg]

Hardware: one NVIDIA GPU (meant for an H200), JAX with CUDA, PyTorch, transformers, segment-anything, mobilesam-lite.
Minutes: at most as given; cases come in the order of their weight, and each is written down when it is done, in
experiments/results/accelerator_DEVICE.json, a run after the other. On a CPU it runs with --small, to see that it does.

JAX and PyTorch each have a process of their own. In a case, both make their subjects at the same time (compiling is
most of it, and not timed), then take turns: a subject is called for a fifth of a second five times, the calls of a
fifth started without waiting between them. "share" is the operations counted from the shapes (flops.py), without what
is padded or done twice, a second, over those of the best plain product of 8192 x 8192 bfloat16 matrices in that
library. float32 is multiplied as float32 in both; the decoder of samjax does that in bfloat16, too, where its masks
need it. Peak memory is the device's, for JAX since its process began.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path

from speed import commit, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECONDS = 1.0  # of a turn


def encoders(name, batch):
    ways = ["official"] if name == "mobile_sam" else ["official", "sdpa", "sdpa+compile"]
    return {"kind": "encoder", "jax": {"samjax": dict(name=name, batch=batch)},
            "torch": {way: dict(name=name, batch=batch, way=way) for way in ways}}


CASES = {
    "matmul": {"kind": "matmul", "jax": {"samjax": {}}, "torch": {"torch": {}}},
    "encoder_vit_h_8": {
        "kind": "encoder",
        "jax": {"samjax": dict(name="vit_h", batch=8),
                **{f"samjax, {a}": dict(name="vit_h", batch=8, attention=a) for a in ("cudnn", "xla")}},
        "torch": {way: dict(name="vit_h", batch=8, way=way) for way in ("official", "sdpa", "sdpa+compile")}},
    "everything_vit_h": {"kind": "everything", "jax": {"samjax": {}}, "torch": {"official generator": {}}},
    "train_vit_h": {
        "kind": "train", "alone": True, "jax": {"samjax, products": dict(name="vit_h", batch=8, objects=8)},
        "torch": {"sdpa": dict(name="vit_h", batch=8, objects=8, way="sdpa"),
                  "sdpa, checkpointed": dict(name="vit_h", batch=8, objects=8, way="sdpa", remat=True)}},
    "train_vit_b": {
        "kind": "train", "alone": True, "jax": {"samjax, products": dict(name="vit_b", batch=8, objects=8)},
        "torch": {"sdpa": dict(name="vit_b", batch=8, objects=8, way="sdpa")}},
    "encoder_vit_h_1": encoders("vit_h", 1),
    "encoder_vit_b_8": encoders("vit_b", 8),
    "encoder_mobile_8": encoders("mobile_sam", 8),
    "decoder_1": {"kind": "decoder", "jax": {"samjax": dict(n=1), "samjax, float32": dict(n=1, dtype="float32")},
                  "torch": {"official": dict(n=1), "official, bfloat16": dict(n=1, dtype="bfloat16")}},
    "decoder_64": {"kind": "decoder", "jax": {"samjax": dict(n=64), "samjax, float32": dict(n=64, dtype="float32")},
                   "torch": {"official": dict(n=64), "official, bfloat16": dict(n=64, dtype="bfloat16")}},
    "decoder_1024": {"kind": "decoder", "jax": {"samjax": dict(n=1024)},
                     "torch": {"official, bfloat16": dict(n=1024, dtype="bfloat16")}},
    "encoder_vit_h_32": {"kind": "encoder", "jax": {"samjax": dict(name="vit_h", batch=32)}, "torch": {}},
    "encoder_vit_h_8_int8": {"kind": "encoder", "jax": {"samjax": dict(name="vit_h", batch=8, int8=True)}, "torch": {}},
    "encoder_vit_h_8_float32": {
        "kind": "encoder", "jax": {"samjax": dict(name="vit_h", batch=8, dtype="float32")},
        "torch": {"sdpa": dict(name="vit_h", batch=8, way="sdpa", dtype="float32")}},
}


def main():
    args = parse()
    until = time.monotonic() + 60 * args.minutes
    workers = {}
    report = {"about": {"commit": commit(), "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
                        "python": platform.python_version()}, "cases": {}}
    for name in args.only:
        if time.monotonic() > until:
            print("the time is over")
            break
        case = CASES[name]
        if case.get("alone"):
            close(workers)
        for library in ("jax", "torch"):
            if case[library] and library not in workers:
                workers[library] = Worker(library)
                report["about"] |= workers[library].about
        print(f"\n{name}", flush=True)
        report["cases"][name] = run(case, workers, args)
        shares(report["cases"])
        device = report["about"].get("device", "unknown").replace(" ", "_")
        out = args.out or HERE / "results" / f"accelerator_{device}.json"
        write(out, {"runs": [*earlier(out, report), report]})
    close(workers)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "coffee.jpg")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn")
    parser.add_argument("--subjects", type=lambda text: text.split("|"), help="only these, by name")
    parser.add_argument("--small", action="store_true", help="small sizes, to try it on a CPU")
    parser.add_argument("--wait", type=Path, help="time nothing until this file is there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if unknown := set(args.only) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    return args


class Worker:
    """One library's process."""

    def __init__(self, library):
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / f"accelerator_{library}.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        self.about = self.answer()

    def tell(self, **question):
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": f"the process ended with status {self.process.wait()}"}

    def ask(self, **question):
        self.tell(**question)
        return self.answer()


def close(workers):
    for worker in workers.values():
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
        worker.process.wait()
    workers.clear()


def run(case, workers, args):
    """{subject: its numbers}. The libraries make and warm up side by side, one subject each at a time; in a case that
    is "alone" one after the other, since JAX gives no memory back before it ends."""
    chosen = {library: [name for name in case[library] if not args.subjects or name in args.subjects]
              for library in ("jax", "torch")}
    results = {}
    pairs = list(zip_longest(chosen["jax"], chosen["torch"]))
    if case.get("alone"):
        pairs = [(name, None) for name in chosen["jax"]] + [(None, name) for name in chosen["torch"]]
    for pair in pairs:
        made = {}
        if case.get("alone") and pair[0] is None and "jax" in workers:
            close({"jax": workers.pop("jax")})
        for library, name in zip(("jax", "torch"), pair):
            if name is not None:
                workers[library].tell(make=case["kind"], **{"with": given(case, library, name, args)})
                made[library] = name
        for library, name in made.items():
            results[name] = workers[library].answer()
        while args.wait and not args.wait.exists():
            time.sleep(0.1)
        for library, name in made.items():
            if "missing" not in results[name]:
                results[name] |= workers[library].ask(time=args.seconds)
        for library, name in made.items():
            summarise(results[name], library)
            show(name, results[name])
            workers[library].ask(drop=True)
    compare(results)
    return results


def given(case, library, name, args):
    options = dict(case[library][name])
    if case["kind"] == "everything":
        options["image"] = str(args.image.resolve())
    if args.small:
        options |= {"matmul": {"side": 512}, "everything": {"name": "vit_b"}}.get(case["kind"], {})
        options |= {"dtype": "float32"} if case["kind"] != "train" else {}  # bfloat16 is emulated on many CPUs
        options |= {key: value for key, value in {"name": "vit_b", "batch": 1, "objects": 2, "n": 2}.items()
                    if key in options and options[key] != "mobile_sam"}
    return options


def summarise(result, library):
    if "seconds" not in result:
        return
    result["library"] = library
    result["median"] = statistics.median(result["seconds"])
    result["images_per_s"] = result["images"] / result["median"]
    if result["flops"]:
        result["tflops"] = result["flops"] / result["median"] / 1e12


def shares(cases):
    """What each subject has of the best plain product in its library, once that is known."""
    peaks = {result["library"]: result["tflops"] for result in cases.get("matmul", {}).values() if "tflops" in result}
    for result in (result for name, case in cases.items() if name != "matmul" for result in case.values()):
        if "tflops" in result and "share" not in result and result["library"] in peaks:
            result["share"] = result["tflops"] / peaks[result["library"]]
            print(f"  {100 * result['share']:.1f} % of the measured peak", flush=True)


def compare(results):
    """Each of PyTorch's seconds over those of samjax's first subject."""
    ours = next((result["median"] for name, result in results.items() if name.startswith("samjax")
                 and "median" in result), None)
    for name, result in results.items():
        if not name.startswith("samjax") and "median" in result and ours:
            result["this_over_samjax"] = result["median"] / ours
            print(f"  {name} takes {result['this_over_samjax']:.2f} times as long", flush=True)


def show(name, result):
    if "missing" in result:
        print(f"  {name:24} missing: {result['missing']}", flush=True)
        return
    speed = f"{result['tflops']:.1f} TFLOP/s" if "tflops" in result else ""
    print(f"  {name:24}{1e3 * result['median']:10.2f} ms {result['images_per_s']:10.2f}/s {result['peak_mib']:8} MiB  "
          f"first {result['built']:.1f} + {result['first']:.1f} s  {speed}", flush=True)


def earlier(path, report):
    """The runs of a record but the one at hand."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    return [run for run in runs if run["about"].get("begun") != report["about"]["begun"]]


if __name__ == "__main__":
    main()
