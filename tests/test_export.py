"""Exported programs: read and run in a process that cannot import samjax, equal to samjax, for three platforms."""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import random_params
from PIL import Image

import convert
import samjax
from convert.tensor import Tensor
from samjax import export as exporting
from samjax.cli import main
from samjax.config import Decoder, SamConfig, TinyViT, ViT
from samjax.errors import InputError
from samjax.predict import _encode

DECODER = Decoder(depth=1, heads=2, mlp=32)
VIT = SamConfig("custom", ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=5), DECODER, channels=16,
                image_size=(64, 96))
TINY = SamConfig("custom", TinyViT((8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 3, 4), (3, 3, 4, 3)), DECODER, channels=16,
                 image_size=(64, 64), resize="area", normalise="min_max")  # resized and normalised as LiteMedSAM
CONFIGS = {"vit": VIT, "tiny": TINY, "bfloat16": replace(VIT, dtype="bfloat16")}
SIZES = {"one": (1, 1, 3), "some": (2, 3, 4)}  # pictures, objects, slots
CASES = [("vit", "one"), ("vit", "some"), ("tiny", "one"), ("bfloat16", "one")]
PROMPT = dict(points=[[60, 20]], labels=[0], boxes=[[10, 15, 80, 70]])  # three slots, as "one" has
INPUTS = ("pixels", "sizes", "features", "points", "labels", "mask_logits", "has_mask")

# Runs under `python -I`, in a process where samjax and all that it is made of cannot be imported.
ELSEWHERE = """
import sys

class Hidden:
    names = {"samjax", "convert", "flax", "orbax", "einops", "optax", "grain"}

    def find_spec(self, name, *_):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import json
import runpy
import jax
import numpy as np

folders, picture = json.loads(sys.argv[1])
for folder in folders:
    load, segment = map(runpy.run_path(folder + "/load.py").get, ("load", "segment"))
    encode, decode, manifest = model = load(folder)
    found = {}
    for size, given in np.load(folder + "/../given.npy", allow_pickle=True).item().items():
        found[size] = {"features": encode(given.pop("pixels"), given.pop("sizes"))}
        found[size]["logits"], found[size]["iou"] = decode(*given.values())
    found["picture"] = segment(model, picture, [(60, 20, 0)], (10, 15, 80, 70))
    np.save(folder + "/../found.npy", jax.tree.map(np.asarray, found))
sys.argv[1:] = [picture, folders[0] + "/../mask.png", "60,20,0", "10,15,80,70"]
runpy.run_path(folders[0] + "/load.py", run_name="__main__")
assert not Hidden.names & {name.split(".")[0] for name in sys.modules}
"""


def make_sam(config) -> samjax.Sam:
    return samjax.Sam(config, jax.device_put(random_params(config)))


def make_inputs(config, b, n, t, seed=0) -> dict:
    random = np.random.default_rng(seed)
    h, w = config.image_size
    return dict(zip(INPUTS, (
        random.integers(0, 256, (b, h, w, 3)).astype(np.uint8), np.int32([[h, w - 8], [h - 16, w]])[:b],
        random.standard_normal((b, *config.grid, config.channels), np.float32),
        random.uniform(0, h, (b, n, t, 2)).astype(np.float32), random.integers(-2, 4, (b, n, t)).astype(np.int32),
        random.standard_normal((b, n, *config.mask_size), np.float32), np.arange(b * n).reshape(b, n) % 2 == 0)))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Larger than the models' input, and of other proportions."""
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    y, x = np.mgrid[:90, :120]
    layers = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 2 * x]
    Image.fromarray(np.stack(layers, -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory, picture):
    """For each config (the export's folder, manifest, what its programs answered in another process)."""
    base, manifests = tmp_path_factory.mktemp("exports"), {}
    for name, config in CONFIGS.items():
        platforms = ("cpu",) if name == "bfloat16" else exporting.PLATFORMS
        manifests[name] = exporting.export(make_sam(config), base / name / "exported", platforms)
        given = {size: make_inputs(config, *SIZES[size]) for of, size in CASES if of == name}
        np.save(base / name / "given.npy", given)
    script = base / "elsewhere.py"
    script.write_text(ELSEWHERE)
    todo = json.dumps(([str(base / name / "exported") for name in CONFIGS], str(picture)))
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    environment["JAX_COMPILATION_CACHE_DIR"] = os.environ["SAMJAX_TEST_PROGRAMS"]
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run([sys.executable, "-I", str(script), todo], env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "") and "pixels, predicted IoU" in done.stdout
    return {name: (base / name / "exported", manifests[name],
                   np.load(base / name / "found.npy", allow_pickle=True).item()) for name in CONFIGS}


@pytest.mark.parametrize("name, size", CASES)
def test_equal_to_samjax(found, name, size):
    config, answers = CONFIGS[name], found[name][2][size]
    sam, given = make_sam(config), make_inputs(config, *SIZES[size])
    pixels, sizes, features, *prompts = given.values()
    decode = jax.jit(samjax.decode_masks, static_argnums=0)
    expected = {"features": _encode(config, sam.params, pixels, sizes),
                **decode(config, sam.params, features, samjax.Prompts(*prompts))._asdict()}
    for key, value in expected.items():
        assert answers[key].dtype == np.float32
        np.testing.assert_allclose(answers[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("name", ["vit", "tiny"])
def test_a_picture_from_file_to_mask(found, picture, name):
    """What `load.py` makes of a box with a point beside the object."""
    sam, (masks, iou) = make_sam(CONFIGS[name]), found[name][2]["picture"]
    expected = sam.segment(sam.encode(picture), **PROMPT)
    assert masks.shape == (4, 90, 120) and masks.dtype == bool and 0.01 < masks.mean() < 0.99
    # Pillow's means over areas differ from OpenCV's, and so samjax's, in the last digit.
    assert (masks[1:] == expected.masks[0]).mean() > (0.99 if name == "tiny" else 0.9999)
    np.testing.assert_allclose(iou[1:], expected.iou[0], rtol=0, atol=0.1 if name == "tiny" else 1e-4)


def test_load_as_a_program(found):
    """With a box the first mask is written."""
    folder, _, answers = found["vit"]
    with Image.open(folder.parent / "mask.png") as image:
        assert np.array_equal(np.asarray(image), answers["picture"][0][0])


def test_manifest(found):
    folder, manifest, _ = found["tiny"]
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, file in manifest["files"].items():
        assert (folder / name).stat().st_size == file["bytes"] and file["sha256"] == exporting._sha256(folder / name)
    assert {"encoder.npz", "decoder.stablehlo", "load.py", "README.md"} < set(manifest["files"])
    assert manifest["resize"] == "area" and manifest["normalise"] == "min_max" and manifest["image_size"] == [64, 64]
    for program in manifest["programs"].values():
        weights = np.load(folder / program["weights"])
        exported = jax.export.deserialize(bytearray((folder / program["program"]).read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu") == tuple(manifest["platforms"])
        named = [(str(aval.dtype), tuple(map(str, aval.shape))) for aval in exported.in_avals[len(weights):]]
        assert named == [(i["dtype"], tuple(map(str, i["shape"]))) for i in program["inputs"]]
        named = [(str(aval.dtype), tuple(map(str, aval.shape))) for aval in exported.out_avals]
        assert named == [(o["dtype"], tuple(map(str, o["shape"]))) for o in program["outputs"]]


def test_weights_are_the_models(found):
    folder = found["vit"][0]
    flat = convert.flatten(random_params(VIT))
    stored = {**np.load(folder / "encoder.npz"), **np.load(folder / "decoder.npz")}
    assert stored.keys() == flat.keys()
    assert all(np.array_equal(stored[name], flat[name]) for name in flat)
    assert (folder / "encoder.stablehlo").stat().st_size < (folder / "encoder.npz").stat().st_size + 200_000


def test_each_platform_has_its_own_form():
    """On a CPU depthwise convolutions as shifted products, and one object at a time; elsewhere neither."""
    programs = exporting.programs(make_sam(TINY))
    text = {(part, platform): exporting.lower(program, (platform,)).mlir_module()
            for part, program in programs.items() for platform in ("cpu", "tpu")}
    assert "feature_group_count = 32" in text["encoder", "tpu"]
    assert "feature_group_count = 32" not in text["encoder", "cpu"]
    assert "stablehlo.while" in text["decoder", "cpu"] and "stablehlo.while" not in text["decoder", "tpu"]
    for program in text.values():  # nothing of the machine that wrote it
        assert ".py" not in program and str(Path(samjax.__file__).parent) not in program


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current directory: a small model, and things that are none."""
    monkeypatch.chdir(tmp_path)
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(random_params(VIT)).items()}
    convert.write(tmp_path / "model.safetensors", convert.Model(VIT, tensors))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    return tmp_path


def test_command(work, capsys):
    """Into a new folder, then over itself for another platform."""
    assert main(["export", "model.safetensors", "new/out", "--platforms", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("custom, float32, for cpu: 7 files, ") and out.endswith(" -> new/out\n") and not err
    before = json.loads(Path("new/out/manifest.json").read_text())
    assert main(["export", "model.safetensors", "new/out", "--platforms", "tpu", "--dtype", "bfloat16", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads(Path("new/out/manifest.json").read_text())
    assert (before["platforms"], before["dtype"]) == (["cpu"], "float32")
    assert (manifest["platforms"], manifest["dtype"]) == (["tpu"], "bfloat16")
    assert {path.name for path in Path("new").iterdir()} == {"out"}


@pytest.mark.parametrize("words, message", [
    (["mobile_san", "out"], "did you mean mobile_sam?"),
    (["nowhere.pth", "out"], "nowhere.pth"),
    (["model.safetensors"], "the following arguments are required: DIR"),
    (["model.safetensors", "out", "--platforms", "cpu,metal"], "platform 'metal' is none of cpu, cuda, tpu"),
    (["model.safetensors", "out", "--platforms", ","], "no platform: give some of cpu, cuda, tpu"),
    (["model.safetensors", "out", "--dtype", "int8"], "invalid choice: 'int8'"),
    (["model.safetensors", "out", "--format", "onnx", "--dtype", "bfloat16"], "ONNX programs compute in float32 only"),
    (["model.safetensors", "out", "--format", "onnx", "--slots", "1"], "1 slots: at least 2 are needed"),
    (["model.safetensors", "file"], "file is a file, not a directory"),
    (["model.safetensors", "file/out"], "file is a file, not a directory"),
    (["model.safetensors", "full"], "holds thesis.txt, which would be lost; choose another directory"),
    (["full", "full"], "full: is MODEL itself; choose another DIR"),
])
def test_wrong_arguments(work, capsys, words, message):
    before = sorted(path.name for path in work.rglob("*"))
    assert main(["export", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1
    assert sorted(path.name for path in work.rglob("*")) == before


def test_no_permission(work, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do anything
    assert main(["export", "model.safetensors", "out"]) == 2
    assert "cannot write to out: no permission in" in capsys.readouterr().err


def test_without_flatbuffers(work, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert main(["export", "model.safetensors", "out"]) == 2
    err = capsys.readouterr().err
    assert "pip install flatbuffers" in err and "extra `export`" in err and not Path("out").exists()


def test_without_jax2onnx(work, capsys, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["export", "model.safetensors", "out", "--format", "onnx"]) == 2
    err = capsys.readouterr().err
    assert "pip install jax2onnx" in err and "extra `onnx`" in err and not Path("out").exists()


def test_what_fails_half_way_leaves_what_was_there(work, monkeypatch):
    folder = work / "out"
    folder.mkdir()
    (folder / "manifest.json").write_text("the old one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "lower", full)
    with pytest.raises(InputError, match="out: no space left on device; nothing was written"):
        exporting.export(make_sam(VIT), folder)
    assert (folder / "manifest.json").read_text() == "the old one"
    assert {path.name for path in work.iterdir()} == {"out", "model.safetensors", "file", "full"}


def test_weights_that_numpy_cannot_store(tmp_path):
    sam = make_sam(VIT)
    half = samjax.Sam(VIT, jax.tree.map(lambda x: x.astype("bfloat16"), sam.params))
    with pytest.raises(InputError, match="weights in bfloat16 cannot be stored"):
        exporting.export(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()
