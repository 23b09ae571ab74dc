"""The command line: what it writes, what it prints, and one line for every mistake."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, SMALL_VIT, random_params
from golden_files import Golden, mask_iou
from PIL import Image

import convert
import samjax
from convert.tensor import Tensor
from convert.torch_file import write_torch
from samjax import weights
from samjax.cli import main
from samjax.config import ViT

ROOT = Path(__file__).resolve().parents[1]
LINE = ["segment", "photo.png", "--point", "30,20", "--model", "model.safetensors", "--single"]
COFFEE = ROOT / "examples" / "coffee.jpg"
SIZE = 90, 60  # of the small picture, width and height


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with a picture, a mask, a small model, and things that are none of these."""
    folder = tmp_path_factory.mktemp("desk")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(folder / "photo.png")
    mask = np.zeros(SIZE[::-1], np.uint8)
    Image.fromarray(mask).save(folder / "empty.png")
    mask[10:30, 20:60] = 255
    Image.fromarray(mask).save(folder / "rough.png")
    Image.fromarray(mask[:50]).save(folder / "short.png")
    config = replace(SMALL_VIT, encoder=ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=3))
    params = random_params(config)
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(params).items()}
    convert.write(folder / "model.safetensors", convert.Model(config, tensors))
    write_torch(folder / "other.pth", {"layer.weight": Tensor.of(np.ones((2, 3), np.float32))})
    (folder / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    (folder / "text.jpg").write_text("no picture")
    (folder / "void.jpg").write_bytes(b"")
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def work(desk, tmp_path, monkeypatch):
    """The current directory: a copy of the desk."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return {os.fspath(path.relative_to(folder)) for path in Path(folder).rglob("*")}


def segment(*args):
    return main(["segment", "photo.png", "--model", "model.safetensors", *args])


def process(*args, cwd, **settings):
    """`samjax` in a process of its own, outside the tests' JAX settings."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    environment |= settings.pop("env", {})
    return subprocess.run([sys.executable, *args], cwd=cwd, env=environment, text=True, timeout=300,
                          **({"capture_output": True} | settings))


@pytest.fixture(scope="module")
def programs(desk, tmp_path_factory):
    """The cache after a first run in a process of its own."""
    folder = tmp_path_factory.mktemp("programs")
    done = process("-m", "samjax", *LINE, "--out", str(folder), cwd=desk, env={"SAMJAX_CACHE": str(folder)})
    assert (done.returncode, done.stderr) == (0, "") and (folder / "photo_mask_0.png").exists()
    return folder


def read(path):
    with Image.open(path) as image:
        assert image.mode == "L" and image.size == SIZE
        array = np.asarray(image)
    assert set(np.unique(array)) <= {0, 255}
    return array == 255


# -- segment -------------------------------------------------------------------------------------------------


def test_three_masks_of_a_point(work, capsys):
    assert segment("--point", "30,20", "--point", "80,50,0", "--out", "new/folder", "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert not err and json.loads((work / "new/folder/photo.json").read_text()) == report
    files = [f"photo_mask_{k}.png" for k in range(3)]
    assert names("new/folder") == {"photo.json", "photo_overlay.png", *files}
    assert report["image"] == {"file": "photo.png", "width": 90, "height": 60}
    assert report["prompts"] == {"points": [[30, 20], [80, 50]], "labels": [1, 0], "boxes": [], "mask": None}
    assert [mask["file"] for mask in report["masks"]] == files
    sam = samjax.load("model.safetensors")
    expected = sam.segment(sam.encode("photo.png"), points=[[30, 20], [80, 50]], labels=[1, 0])
    for k, entry in enumerate(report["masks"]):
        mask = read(work / "new/folder" / entry["file"])
        assert np.array_equal(mask, expected.masks[0, k])
        assert entry["object"] == 0 and entry["area"] == mask.sum()
        assert entry["predicted_iou"] == pytest.approx(expected.iou[0, k], abs=1e-6)
        assert entry["best"] == (k == expected.best[0])
        x, y, w, h = entry["bbox"]
        assert mask[y:y + h, x:x + w].sum() == mask.sum()
        assert not mask.any() or (mask[[y, y + h - 1]].any(1).all() and mask[:, [x, x + w - 1]].any(0).all())
    with Image.open("new/folder/photo_overlay.png") as overlay:
        assert overlay.size == SIZE and overlay.mode == "RGB"


def test_boxes_are_objects_and_count_first(work, capsys):
    assert segment("--box", "0,0,40,30", "--box", "20.5,10,90,60", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [(mask["file"], mask["object"]) for mask in report["masks"]] == [
        (f"photo_mask_{k}.png", k // 3) for k in range(6)]
    assert report["prompts"]["boxes"] == [[0, 0, 40, 30], [20.5, 10, 90, 60]]
    sam = samjax.load("model.safetensors")
    expected = sam.segment(sam.encode("photo.png"), boxes=[[0, 0, 40, 30], [20.5, 10, 90, 60]])
    for k in range(6):
        assert np.array_equal(read(f"photo_mask_{k}.png"), expected.masks[k // 3, k % 3])
    assert segment("--box", "0,0,40,30", "--box", "20.5,10,90,60", "--single", "--out", "single", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [mask["object"] for mask in report["masks"]] == [0, 1] and all(mask["best"] for mask in report["masks"])


def test_a_mask_alone_brings_its_box(work, capsys):
    assert segment("--mask", "rough.png", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"] == {"points": [], "labels": [], "boxes": [[20, 10, 60, 30]], "mask": "rough.png"}
    sam = samjax.load("model.safetensors")
    logits = samjax.mask_to_logits(samjax.image.read_mask("rough.png"), sam.config)
    expected = sam.segment(sam.encode("photo.png"), boxes=[20, 10, 60, 30], mask_logits=logits)
    assert all(np.array_equal(read(f"photo_mask_{k}.png"), expected.masks[0, k]) for k in range(3))


def test_a_mask_joins_points_and_a_box(work, capsys):
    assert segment("--mask", "rough.png", "--point", "30,20", "--single", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompts"]["boxes"] == []
    assert segment("--mask", "rough.png", "--point", "30,20", "--box", "1,2,80,50", "--single", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == {
        "points": [[30, 20]], "labels": [1], "boxes": [[1, 2, 80, 50]], "mask": "rough.png"}


def test_the_summary_names_every_file(work, capsys):
    assert segment("--point", "30,20", "--out", "out") == 0
    out, err = capsys.readouterr()
    assert not err and out.count("best") == 1
    assert set(re.findall(r"out/\S+", out)) == {f"out/{name}" for name in names("out")}


@pytest.mark.weights
def test_the_bundled_photograph(mobile_sam_path, tmp_path, capsys):
    golden = Golden(DATA / "mobilesam_coffee.npz")
    prompt = next(p for p in golden.prompts if len(p.get("point_coords", [])) == 1 and "box" not in p
                  and "mask_from" not in p and p["multimask_output"])
    x, y = prompt["point_coords"][0]
    assert main(["segment", str(COFFEE), f"--point={x},{y}", "--model", str(mobile_sam_path),
                 "--out", str(tmp_path)]) == 0
    found = np.stack([np.asarray(Image.open(tmp_path / f"coffee_mask_{k}.png")) == 255 for k in range(3)])
    assert mask_iou(found, golden.masks(prompt["id"])[0]).min() >= 0.999


# -- wrong input ---------------------------------------------------------------------------------------------

POINT, MODEL = LINE[2:4], LINE[4:6]
WRONG = {
    "missing file": (["nowhere.jpg", *POINT], "nowhere.jpg: no such file"),
    "not an image": (["text.jpg", *POINT], "text.jpg is not an image"),
    "empty image": (["void.jpg", *POINT], "void.jpg is empty"),
    "a folder": ([".", *POINT], "is a directory, not an image"),
    "a NUL": (["a\0b.jpg", *POINT], "null"),
    "no prompt": (["photo.png"], "no prompt: give --point"),
    "point outside": (["photo.png", "--point", "91,20"], "point (91, 20) lies outside the image of 90 x 60 pixels"),
    "point before": (["photo.png", "--point", "-3,20"], "point (-3, 20) lies outside"),
    "NaN": (["photo.png", "--point", "nan,20"], "'nan,20' holds NaN or infinity"),
    "infinity": (["photo.png", "--box", "0,0,inf,20"], "holds NaN or infinity"),
    "label 7": (["photo.png", "--point", "30,20,7"], "label 7 is none of 1"),
    "no numbers": (["photo.png", "--point", "a,b"], "'a,b' is not X,Y"),
    "too few": (["photo.png", "--box", "1,2,3"], "'1,2,3' is not X0,Y0,X1,Y1"),
    "box turned round": (["photo.png", "--box", "50,10,20,40"], "box (50, 10, 20, 40) is empty"),
    "box of no width": (["photo.png", "--box", "50,10,50,40"], "x0 < x1"),
    "box outside": (["photo.png", "--box", "100,10,120,40"], "lies outside the image"),
    "points and boxes": (["photo.png", *POINT, "--box", "1,1,9,9", "--box", "2,2,9,9"], "points and a mask belong to"),
    "mask and boxes": (["photo.png", "--mask", "rough.png", "--box", "1,1,9,9", "--box", "2,2,9,9"], "2 boxes are"),
    "missing mask": (["photo.png", "--mask", "no.png"], "no.png: no such file"),
    "mask of other size": (["photo.png", "--mask", "short.png"], "short.png is 90 x 50 pixels, but the image is 90 x"),
    "empty mask": (["photo.png", "--mask", "empty.png"], "empty.png is empty"),
    "unknown model": (["photo.png", *POINT, "--model", "mobilesam"], "did you mean mobile_sam?"),
    "other checkpoint": (["photo.png", *POINT, "--model", "other.pth"], "other.pth: is not a SAM checkpoint"),
    "cut checkpoint": (["photo.png", *POINT, "--model", "cut.safetensors"], "cut.safetensors"),
    "picture as model": (["photo.png", *POINT, "--model", "photo.png"], "photo.png"),
    "out is a file": (["photo.png", *POINT, *MODEL, "--out", "file"], "file is a file, not a directory"),
    "out below a file": (["photo.png", *POINT, *MODEL, "--out", "file/x/y"], "file is a file, not a directory"),
    "unknown dtype": (["photo.png", *POINT, "--dtype", "int8"], "invalid choice"),
    "unknown option": (["photo.png", *POINT, "--pointy", "3"], "unrecognized arguments"),
    "no image": (POINT, "required: IMAGE"),
}


def assert_refused(status, capsys, message):
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("samjax: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(work, capsys, case):
    args, message = WRONG[case]
    before = names(work)
    assert_refused(main(["segment", *args]), capsys, message)
    assert names(work) == before


def test_wrong_input_is_answered_without_jax(work):
    program = ("import json, sys; from samjax.cli import main; "
               "print([main(['segment', *args]) for args in json.loads(sys.argv[1])], 'jax' in sys.modules)")
    cases = [args for args, _ in WRONG.values()]
    done = subprocess.run([sys.executable, "-c", program, json.dumps(cases)], text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100)
    assert done.stdout == f"{[2] * len(cases)} False\n"
    assert done.stderr.count("\n") == len(cases)


def test_no_permission(work, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    assert_refused(segment(*POINT), capsys, "no permission in")


def test_a_disk_that_fills_up(work, programs):
    pytest.importorskip("resource")  # not on Windows
    # A file may grow to 300 bytes: the overlay needs more, the masks do not.
    program = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); "
               "from samjax.cli import main; sys.exit(main(sys.argv[1:]))")
    before = names(work)
    done = process("-c", program, *LINE, "--out", "new", cwd=work, env={"SAMJAX_CACHE": str(programs)})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"samjax: error: cannot write new/photo_\w+\.\w+: file too large\n", done.stderr)
    assert names(work) == before


def test_full_standard_output(work):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = process("-m", "samjax", "weights", cwd=work, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 2 and done.stderr == (
        "samjax: error: cannot write to the standard output: No space left on device\n")


def test_a_mask_is_not_overwritten(work, capsys):
    os.rename("rough.png", "photo_mask_1.png")
    before = Path("photo_mask_1.png").read_bytes()
    assert_refused(segment("--mask", "photo_mask_1.png"), capsys, "choose another --out")
    assert Path("photo_mask_1.png").read_bytes() == before
    assert segment("--mask", "photo_mask_1.png", "--out", "else") == 0


# -- the program as a whole ----------------------------------------------------------------------------------


def test_version_and_help(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"samjax {samjax.__version__}\n"
    for args in ([], ["segment"], ["weights"], ["convert"]):
        assert main([*args, "--help"]) == 0
        out, err = capsys.readouterr()
        assert "examples:" in out and not err and max(map(len, out.splitlines())) <= 120


def test_logs_and_warnings_are_silent_only_meanwhile(capsys, monkeypatch):
    def speak():
        warnings.warn("a warning", stacklevel=1)
        logger.warning("a message")
        return "table"

    logger, filters = logging.getLogger("jax"), list(warnings.filters)
    level = logger.level
    monkeypatch.setattr(weights, "table", speak)
    assert main(["weights"]) == 0 and capsys.readouterr() == ("table\n", "")
    assert logger.level == level and warnings.filters == filters


@pytest.mark.parametrize("args", [[], ["segmnt"], ["--verbose"], ["weights", "a", "b"]])
def test_wrong_commands(args, capsys):
    assert_refused(main(args), capsys, "--help")


def test_unexpected_errors_are_one_line(capsys, monkeypatch):
    def fail():
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(weights, "table", fail)
    assert main(["weights"]) == 1
    assert capsys.readouterr().err == ("samjax: unexpected error: RuntimeError: first second "
                                       "(set SAMJAX_DEBUG=1 for the traceback)\n")
    monkeypatch.setenv("SAMJAX_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["weights"])


def test_interrupts(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "table", interrupt)
    assert main(["weights"]) == 130 and capsys.readouterr().err == "samjax: interrupted\n"
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(weights, "table", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        main(["weights"])
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_goes_away(work):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = process("-m", "samjax", "weights", cwd=work, stdout=pipe, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_compile_cache(work, programs):
    """It is filled by the first run and a user's own setting wins; one that cannot be written does no harm."""
    assert list(programs.glob("xla/*/*-cache"))
    program = "import jax; from samjax.commands.common import start_jax as s; s(); print(jax.config.{})"
    for env, expected in (({"SAMJAX_CACHE": "new"}, r"new/xla/[\w.-]+"), ({"SAMJAX_CACHE": "file/below"}, "None"),
                          ({"SAMJAX_CACHE": "new2", "JAX_COMPILATION_CACHE_DIR": "own"}, "own")):
        done = process("-c", program.format("jax_compilation_cache_dir"), cwd=work, env=env)
        assert re.fullmatch(f"(.*/)?{expected}\n", done.stdout) and (done.returncode, done.stderr) == (0, "")
    assert not Path("new2").exists()


# -- weights, convert ----------------------------------------------------------------------------------------


def test_weights(capsys):
    assert main(["weights"]) == 0 and capsys.readouterr().out == weights.table() + "\n"
    assert main(["weights", "--json"]) == 0 and json.loads(capsys.readouterr().out) == weights.rows()
    assert_refused(main(["weights", "vit-b"]), capsys, "did you mean vit_b?")


def test_weights_that_are_fetched(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "fetch", lambda name: tmp_path / name)
    assert main(["weights", "vit_b"]) == 0 and capsys.readouterr().out == f"{tmp_path / 'vit_b'}\n"
    assert main(["weights", "vit_b", "--json"]) == 0 and json.loads(capsys.readouterr().out)["name"] == "vit_b"


def test_weights_offline(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAMJAX_OFFLINE", "1")
    assert_refused(main(["weights", "mobile_sam"]), capsys, "SAMJAX_OFFLINE is set")
    assert not (tmp_path / "cache").exists()


def test_int8_weights(work, capsys):
    """Made when loading, or read from a file of them: the same masks."""
    assert main([*LINE, "--out", "made", "--int8"]) == 0
    assert main(["convert", "model.safetensors", "held.safetensors", "--int8"]) == 0
    line = ["held.safetensors" if part == "model.safetensors" else part for part in LINE]
    assert main([*line, "--out", "read"]) == 0
    names = ["photo_mask_0.png", "photo_overlay.png"]
    assert [(work / "made" / name).read_bytes() for name in names] == [
        (work / "read" / name).read_bytes() for name in names]


def test_convert_there_and_back(work, capsys):
    steps = ["model.safetensors", "a.pth", "b", "c.safetensors", "d.safetensors"]
    for source, target in zip(steps, steps[1:]):
        naming = ["--naming", "transformers"] if target == "c.safetensors" else []
        assert main(["convert", source, target, *naming]) == 0
        out, err = capsys.readouterr()
        assert re.fullmatch(rf"custom: \d+ tensors, [\d,]+ parameters; {source} .* -> {target} \(.* MB\)\n", out)
        assert not err
    assert Path("d.safetensors").read_bytes() == Path("model.safetensors").read_bytes()


def test_convert_as_a_module(work):
    done = process("-m", "convert", "model.safetensors", "copy.pth", cwd=work)
    assert (done.returncode, done.stderr) == (0, "") and convert.read("copy.pth").config.name == "custom"
    done = process("-m", "convert", "other.pth", "copy2.pth", cwd=work)
    assert done.returncode == 2 and done.stderr.startswith("samjax: error: other.pth: is not a SAM checkpoint")


@pytest.mark.parametrize("args, message", [
    (["model.safetensors", "./model.safetensors"], "is SRC itself"),
    (["model.safetensors", "file/below.pth"], "file/below.pth"),
    (["model.safetensors", "file"], "exists and is not a samjax model"),
    (["model.safetensors", "directory", "--naming", "transformers"], "directory"),
    (["model.safetensors", "x.pth", "--naming", "nonsense"], "invalid choice"),
    (["other.pth", "x.safetensors"], "is not a SAM checkpoint"),
    (["vit-b", "x.pth"], "did you mean vit_b?"),
])
def test_wrong_conversions(work, capsys, args, message):
    before = names(work)
    assert_refused(main(["convert", *args]), capsys, message)
    assert names(work) == before
