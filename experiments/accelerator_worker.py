"""One library's process in experiments/accelerator.py: it makes subjects and times them, as it is told on stdin.

Lines of JSON, each answered by one:

    {"make": KIND, "with": {...}}   builds a subject and calls it once   -> {"built": s, "first": s, "images", "flops"}
    {"time": seconds}               calls it for about so long           -> {"seconds": [a call's, ...], "peak_mib"}
    {"drop": true}                  forgets it                           -> {}

An answer {"missing": why} says that it did not work. Whatever libraries print goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

PARTS = 5  # of a turn: each is timed alone, so that a spread is seen


class Subject(NamedTuple):
    """call starts the work once and returns what to wait for; so many images (or prompts) and operations each time."""

    call: Callable
    images: int
    flops: float


def serve(makers: dict, wait: Callable, peak: Callable, forget: Callable, about: dict) -> None:
    """Answers until stdin ends. wait: blocks until what a call returned is there. peak: MiB of the device."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    subject = None
    answers.write(json.dumps(about) + "\n")
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if "make" in question:
                subject, answer = _make(makers[question["make"]], question["with"], wait)
            elif "time" in question:
                answer = {"seconds": timed(subject.call, wait, question["time"]), "peak_mib": round(peak())}
            else:
                subject, answer = None, {}
                forget()
        except Exception as error:  # what does not work is reported, the others are still measured
            subject, answer = None, {"missing": f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]}
            sys.excepthook(*sys.exc_info())
            forget()
        answers.write(json.dumps(answer) + "\n")


def _make(maker: Callable, given: dict, wait: Callable) -> tuple[Subject, dict]:
    start = time.perf_counter()
    subject = maker(**given)
    built = time.perf_counter()
    wait(subject.call())
    called = time.perf_counter()
    return subject, {"built": built - start, "first": called - built, "images": subject.images, "flops": subject.flops}


def timed(call: Callable, wait: Callable, seconds: float) -> list[float]:
    """Seconds of a call, PARTS times: each the mean over calls that are started without waiting between them.

    Of what takes longer than `seconds` two calls are timed, one after the other.
    """
    wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    if once > seconds:
        return [once, mean(call, wait, 1)]
    return [mean(call, wait, max(1, round(seconds / PARTS / once))) for _ in range(PARTS)]


def mean(call: Callable, wait: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        out = call()
    wait(out)
    return (time.perf_counter() - start) / repeats
