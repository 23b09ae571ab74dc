"""How fast samjax is beside the other implementations of SAM, on the same machine with the same threads.

    python experiments/speed.py [--only encoder_vit_b,decoder_64,start] [--rounds 5] [--weights mobile_sam.pt]

Hardware: 2 CPU cores. Minutes: about 20 (all cases, 5 rounds). Result: experiments/results/speed_cpu.json.

Each subject lives in a process of its own, bound to the same cores; within a case the subjects take turns, in
an order that rotates each round, so that a drift of the machine touches all of them. A ratio is samjax's time
over the peer's in the same round, given as the median over the rounds, the least and the greatest: below 1
samjax is faster. Weights are random (they do not change the time), except for `everything` (fetched MobileSAM) and
for `start`, which needs the published MobileSAM file. Peers that are not installed are named as missing. Cases:

  encoder_vit_b   normalised pixels -> features: official PyTorch, transformers (SDPA), keras-hub (on JAX)
  encoder_mobile  the same with MobileSAM's encoder: official PyTorch (mobilesam-lite)
  decoder_1, _64  features and 1 or 64 prompts of one point each -> three 256 x 256 masks each
  encode_jpeg     a JPEG file -> embedding, MobileSAM: SamPredictor.set_image against Sam.encode
  click           one point on an encoded picture -> three masks of its size: predict against Sam.segment
  everything      all masks of a picture, 32 x 32 points: SamAutomaticMaskGenerator against Sam.everything
  everything_paper  the same with the `paper` preset: 21 crops, three times the points
  start           a whole process to the files written, compile cache warm, MobileSAM and one point

Peak memory is that of each subject's whole process, imports and weights included (and, as "call", of the
calls alone with what is held between them).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed_subjects import BFLOAT16, CASES, LONG

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
POINT = (290, 160)  # on the coffee of the bundled photograph
SHORTEST = 0.3  # seconds: a turn repeats its call until it has lasted about this long


def main():
    args = parse()
    results = json.loads(args.out.read_text())["cases"] if args.keep and args.out.exists() else {}
    about = machine(args.threads)
    for case in args.only:
        print(f"\n{case}", flush=True)
        results[case] = start_case(args) if case == "start" else call_case(case, args)
        show(results[case])
        write(args.out, {"machine": about, "rounds": args.rounds, "cases": results})  # a stop loses one case
    print(f"\nwritten to {args.out}")


def parse():
    cases = [*CASES, "start"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=cases, help=",".join(cases))
    parser.add_argument("--subjects", type=lambda text: text.split(","), help="only these, by name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "coffee.jpg")
    parser.add_argument("--weights", type=Path, help="the published mobile_sam.pt, for `start`")
    parser.add_argument("--bf16", action="store_true", help="also samjax in bfloat16 (for accelerators)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speed_cpu.json")
    parser.add_argument("--keep", action="store_true", help="keep the other cases of an existing output file")
    args = parser.parse_args()
    unknown = set(args.only) - set(cases)
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    return args


# Cases that call a function in a warm process.

class Worker:
    """One subject's process."""

    def __init__(self, case, subject, args):
        command = [sys.executable, "-W", "ignore", HERE / "speed_subjects.py", case, subject,
                   str(args.threads), str(args.image.resolve())]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        stderr=self.log, env=environment(args.threads), cwd=ROOT)
        self.state = self._answer()
        self.missing = self.state.get("missing")

    def ask(self, question):
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or ["no message"])[-1]
        return {"missing": f"ended with status {self.process.wait()}: {last}"}


def call_case(case, args):
    """{subject: its numbers} of one case."""
    names = list(CASES[case][1])
    if args.bf16 and case.startswith(("encoder", "decoder")):
        names.append("samjax" + BFLOAT16)
    workers = {name: Worker(case, name, args) for name in names if not args.subjects or name in args.subjects}
    results = {name: {"missing": worker.missing} for name, worker in workers.items() if worker.missing}
    present = {name: worker for name, worker in workers.items() if not worker.missing}
    repeats = {}
    for name, worker in present.items():
        alone = worker.state["first"]
        repeats[name] = max(1, round(SHORTEST / (alone if alone > LONG else worker.ask(1)["seconds"][0])))
    first = {name: worker.state["first"] for name, worker in present.items()
             if name == "official" and worker.state["first"] > LONG}  # it compiles nothing: a long first call counts
    seconds = turns(present, args.rounds, lambda name: first.pop(name, None) or statistics.median(
        present[name].ask(repeats[name])["seconds"]))
    for name, worker in present.items():
        results[name] = {"seconds": seconds[name], "first_call": worker.state["first"],
                         "peak_mb": {k: round(v) for k, v in worker.ask("peak").items()}}
    for worker in workers.values():
        worker.close()
    return summarise(results)


def turns(names, rounds, measure):
    """{name: seconds of each round}, the order rotating from round to round."""
    names = list(names)
    seconds = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(measure(name))
    return seconds


# The case that times whole processes.

def start_case(args):
    """Process start to files written: samjax, and a minimal PyTorch program as installed and without timm."""
    if args.weights is None:
        return {"samjax": {"missing": "give --weights mobile_sam.pt"}}
    with tempfile.TemporaryDirectory() as folder:
        commands = start_commands(args, Path(folder))
        results, present = {}, {}
        for name, command in commands.items():
            try:
                timed(command, args.threads)  # fills the compile cache and the file cache
                files = sorted(path.name for path in (Path(folder) / name).iterdir())
                present[name] = {"files": files}
            except (subprocess.CalledProcessError, FileNotFoundError) as error:
                results[name] = {"missing": str(getattr(error, "stderr", error)).strip().splitlines()[-1]}
        seconds = turns(present, args.rounds, lambda name: timed(commands[name], args.threads))
        for name, extra in present.items():
            results[name] = {"seconds": seconds[name], **extra}
    return summarise(results)


def start_commands(args, folder):
    x, y = POINT
    image, weights = str(args.image.resolve()), str(args.weights.resolve())
    torch = [sys.executable, "-W", "ignore", str(HERE / "torch_segment.py"), image, str(x), str(y)]
    commands = {
        "official": [*torch, str(folder / "official"), weights],
        "official_lean": [*torch, str(folder / "official_lean"), weights, "--lean"],
        "samjax": [sys.executable, "-m", "samjax", "segment", image, "--point", f"{x},{y}",
                   "--model", weights, "--out", str(folder / "samjax")],
    }
    return {name: line for name, line in commands.items() if not args.subjects or name in args.subjects}


def timed(command, threads):
    """Seconds of a whole process."""
    def bind():
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, preexec_fn=bind,
                   env=environment(threads))
    return time.perf_counter() - start


# What is written down.

def environment(threads):
    """The subjects' environment: this repository's samjax, and the threads of OpenMP."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**os.environ, "PYTHONPATH": path, **limits}


def write(path, report):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)


def summarise(results):
    """Adds each subject's median, and each peer's ratio: samjax's seconds over its own, round by round."""
    ours = results.get("samjax", {})
    results = dict(sorted(results.items(), key=lambda item: item[0].startswith("samjax")))
    for name, result in results.items():
        if "seconds" not in result:
            continue
        result["median"] = statistics.median(result["seconds"])
        if name == "samjax" or "seconds" not in ours:
            continue
        ratios = [a / b for a, b in zip(ours["seconds"], result["seconds"])]
        result["samjax_over_this"] = {"median": statistics.median(ratios), "least": min(ratios),
                                      "greatest": max(ratios)}
        if "peak_mb" in ours and "peak_mb" in result:
            peaks = [each["peak_mb"]["process"] for each in (ours, result)]
            result["samjax_over_this"]["peak_memory"] = peaks[0] / peaks[1]
    return results


def show(results):
    print(f"{'subject':16}{'median s':>10}{'peak MB':>9}   samjax / this (least to greatest)")
    for name, result in results.items():
        if "missing" in result:
            print(f"{name:16}missing: {result['missing']}")
            continue
        peak = result.get("peak_mb", {}).get("process", "")
        line = f"{name:16}{result['median']:10.4f}{peak:>9}"
        ratio = result.get("samjax_over_this")
        if ratio:
            line += f"   {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['greatest']:.3f})"
            if "peak_memory" in ratio:
                line += f", memory {ratio['peak_memory']:.2f}"
        print(line, flush=True)


def machine(threads):
    """The processor, the threads, the packages and the commit that were measured."""
    import peers

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "system": platform.system(),
            "python": platform.python_version(), "versions": peers.versions(), "commit": commit(),
            "date": time.strftime("%Y-%m-%d")}


def commit():
    """The commit of this repository, with a + if the library differs from it; None outside git."""
    def git(*line):
        done = subprocess.run(["git", *line], cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "samjax") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
