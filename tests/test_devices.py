"""Jobs on one device, on several, and on two processes of four: the same files, byte for byte."""

import os
import socket
import subprocess
import sys

import pytest
from test_everything import LOOSE, MODEL, ROOT, model, picture, read, tree  # noqa: F401 (model is a fixture)

SIZES = [(60, 40), (40, 60), (90, 30), (31, 31), (64, 64), (120, 50), (20, 80)]


@pytest.fixture(scope="module")
def work(model, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("devices")
    (folder / "model.safetensors").write_bytes(model.read_bytes())
    for seed in range(11):
        picture(folder / "photos" / f"{seed}.png", seed, SIZES[seed % len(SIZES)])
    (folder / "photos/broken.png").write_bytes(b"\x89PNG")
    return folder


def start(work, devices, *args):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SAMJAX_CACHE": str(work / "cache"), "JAX_PLATFORMS": "cpu",
                                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen([sys.executable, "-m", "samjax", *args, *MODEL], cwd=work, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(*processes):
    try:
        answers = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, answers):
        assert process.returncode in (0, 1) and err.count("\n") <= 1, (out, err)
    return [out for out, _ in answers]


def coordinated(index):
    return ["--processes", "2", "--process", str(index), "--coordinator", coordinated.address]


@pytest.fixture(scope="module", autouse=True)
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinated.address = f"localhost:{free.getsockname()[1]}"


@pytest.mark.slow
def test_everything_gives_the_same_files(work):
    args = ["everything", "photos", "--overlay", "--crop-n-layers", "1", "--crop-nms-thresh", "1", *LOOSE, "--out"]
    end(start(work, 1, *args, "one"))
    expected = tree(work / "one")
    end(start(work, 8, *args, "eight"))
    assert tree(work / "eight") == expected and len(expected) == 2 * 11 + 1
    outs = end(*(start(work, 4, *args, "two", *coordinated(i)) for i in range(2)))
    assert tree(work / "two") == expected
    assert ["6 images" in out or "5 images" in out for out in outs] == [True, True]
    manifest = read(work / "one/manifest.json")
    assert manifest["images"] == 11 and manifest["masks"] > 100 and len(manifest["failures"]) == 1


@pytest.mark.slow
def test_embed_gives_the_same_files(work):
    args = ["embed", "photos", "--shard", "4", "--out"]
    end(start(work, 1, *args, "e1"))
    end(*(start(work, 4, *args, "e2", "--processes", "2", "--process", str(i)) for i in range(2)))
    assert tree(work / "e2") == tree(work / "e1") and len(tree(work / "e1")) == 7


def test_one_device_is_given_the_threads_of_eight(monkeypatch):
    from samjax.commands.processes import steady

    monkeypatch.delenv("NPROC", raising=False)
    steady()
    assert "NPROC" not in os.environ  # JAX has begun: too late to matter
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("NPROC", "3")
    steady()
    assert os.environ["NPROC"] == "3"
    monkeypatch.delenv("NPROC")
    steady()
    assert int(os.environ["NPROC"]) == max(8, os.cpu_count())
