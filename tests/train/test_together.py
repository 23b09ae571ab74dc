"""Several processes train as one: they end together, whichever one is told to, and go on as if nothing had been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_loop
import training_runs

import convert
from samjax.cli import main
from samjax.errors import InputError
from samjax.train.loop import Plan
from samjax.train.metrics import read
from samjax.train.together import Alarm, dealt, gathered
from samjax.weights import resolve

HERE = Path(__file__).parent
STEPS = 40


def two(script, words, *, told=None) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of two processes of two devices; told(processes) is called while they run."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent))),
                                "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen([sys.executable, HERE / script, *words(i)], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
    try:
        if told:
            told(both)
        return [(process.wait(timeout=300), *process.communicate()) for process in both]
    finally:
        for process in both:
            process.kill()


def address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def toys(out, wait: float, told=None) -> list[dict]:
    where = address()
    ended = two("toy_loop.py", lambda i: [str(out), str(STEPS), str(wait), where, str(i)], told=told)
    assert [status for status, _, _ in ended] == [0, 0], ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


def test_a_signal_to_one_ends_both_and_they_go_on(tmp_path):
    """To the numbers of one process that nothing happens to, from each evaluation with what both contribute."""
    def tell(both):
        until = time.monotonic() + 120
        while not (tmp_path / "metrics.jsonl").exists() or len(read(tmp_path / "metrics.jsonl")[0]) < 5:
            assert time.monotonic() < until and both[0].poll() is None
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)

    first = toys(tmp_path, 0.1, tell)
    assert first[0] == first[1] and first[0]["reason"] == "SIGTERM" and 5 <= first[0]["step"] < STEPS
    last = toys(tmp_path, 0.0)
    assert last[0] == last[1] and last[0]["reason"] == "done" and last[0]["resumed"] == first[0]["step"]
    assert last[0]["scores"] == {str(step): {"score": 1.0} for step in (0, 20, 40)}
    alone = toy_loop.run(tmp_path / "alone", steps=STEPS)
    np.testing.assert_allclose(last[0]["kernel"], alone.params["mask_decoder"]["kernel"], atol=1e-6)
    once, twice = (read(path / "metrics.jsonl")[0] for path in (tmp_path / "alone", tmp_path))
    assert [line["step"] for line in twice] == [line["step"] for line in once]
    np.testing.assert_allclose([line["loss"] for line in twice], [line["loss"] for line in once], rtol=1e-5)


@pytest.mark.skipif(not os.environ.get("SAMJAX_THOROUGH"), reason="SAMJAX_THOROUGH=1 asks for it")
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["pmap", "data", "fsdp"])
def test_the_command_by_two_processes(tmp_path, sharding):
    """Four devices in two processes, and eight in one: the same model, but for rounding."""
    place = training_runs.prepare(tmp_path)
    where = address()
    together = ["--sharding", sharding, "--coordinator", where, "--processes", "2"]
    ended = two("training_runs.py", lambda i: training_runs.words(place, "two", *together, "--process", str(i)))
    assert [status for status, _, _ in ended] == [0, 0], ended
    said = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for _, out, _ in ended]
    assert f"over 4 devices ({sharding})" in said[0][0] and not said[1]
    assert main(training_runs.words(place, "one")) == 0
    reports = [json.loads((place / out / "report.json").read_text()) for out in ("one", "two")]
    for step, scores in reports[0]["scores"].items():
        assert scores == pytest.approx(reports[1]["scores"][step], abs=0.5)
    losses = [[line["loss"] for line in read(place / out / "metrics.jsonl")[0]] for out in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    one, two_ = (convert.read(resolve(str(place / out))).tensors for out in ("one", "two"))
    assert reports[0]["best_step"] == reports[1]["best_step"]
    for name in one:
        np.testing.assert_allclose(one[name].load(), two_[name].load(), atol=1e-4)


def test_one_process_has_nobody_to_ask():
    assert gathered([1, 2]).tolist() == [[1, 2]] and list(dealt(3)) == [0, 1, 2]
    alarm = Alarm()
    assert [alarm(step, number, None) for step, number in ((0, 0), (1, 15), (2, 0))] == [0, 15, 0]


def test_clocks_bound_no_run_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda *_: 2)
    for plan in (Plan(minutes=1.0, sharding="data"), Plan(rarely=2.0, sharding="data"), Plan()):
        with pytest.raises(InputError, match="several processes train by pmap, data or fsdp"):
            toy_loop.run(tmp_path, plan=plan)
