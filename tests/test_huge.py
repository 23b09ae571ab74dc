"""`samjax everything --tile`: what it writes, how it goes on, what it says."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from PIL import Image
from test_tiling import PICTURE, SAM, Oracle, found_in, shapes_at_random

import convert
from convert.tensor import Tensor
from samjax import annotations, huge, job, tiling
from samjax.cli import main
from samjax.commands import everything as command
from samjax.commands.tiles import Meter
from samjax.config import ViT
from samjax.inputs import find_sources
from samjax.settings import Settings
from samjax.tiles import Tiling

TILING = Tiling(160, 32, 1.0, 32.0, 0.6)
NUMBERS = dict(tile=160, halo=32, spacing=32)
LARGE, OTHER = PICTURE[:320, :400], PICTURE[:130, 100:300]
SMALL = ["--tile", "--halo", "16", "--spacing", "16"]  # for a frame of 64 px
LOOSE = ["--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "1"]


A, B = (len(TILING.plan(256, one.shape[:2], Settings()).windows) for one in (LARGE, OTHER))
AGAIN = 3  # further windows of LARGE, for what seams cut; OTHER has none
ALL = A + AGAIN + B


class Killed(BaseException):
    pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory, with two pictures of shapes."""
    (tmp_path / "photos/sub").mkdir(parents=True)
    Image.fromarray(LARGE).save(tmp_path / "photos/a.png")
    Image.fromarray(OTHER).save(tmp_path / "photos/sub/b.tif")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_job(out="out", **values):
    sources, _ = find_sources(["photos"], out)
    model = {"name": "m", "architecture": "custom", "sha256": "0" * 64, "dtype": "float32"}
    return job.Job(sources, Path(out), **{"model": model, "settings": Settings(output_mode="coco_rle"),
                                          "tiling": TILING, **values})


def do(task, restart=False, progress=None):
    job.check(task, restart)
    return list(job.run(task, lambda: huge.model(SAM, task, progress), restart))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file()}


def test_files_hold_what_tiling_finds(place, monkeypatch):
    oracle, told = Oracle(monkeypatch, shapes_at_random(1)), []
    outcomes = do(a_job(overlay=True), progress=lambda *counts: told.append(counts))
    assert set(tree("out")) == {"manifest.json", *(f"{stem}{end}" for stem in ("a", "sub/b")
                                                   for end in (".json", "_overlay.png"))}
    assert told == [*(("a.png", i + 1, A) for i in range(A)),
                    *(("a.png", A + i + 1, A + AGAIN) for i in range(AGAIN)),
                    *(("sub/b.tif", i + 1, B) for i in range(B))]
    assert len(oracle.encoded) == ALL > 10
    expected = tiling.everything(SAM, LARGE, Settings(output_mode="coco_rle"), **NUMBERS)
    written = json.loads(Path("out/a.json").read_text())
    assert written["annotations"] == annotations.sa1b(expected, LARGE.shape[:2], "a.png")["annotations"]
    assert (outcomes[0].masks, outcomes[0].hw) == (len(expected), LARGE.shape[:2]) and len(expected) > 5
    with Image.open("out/a_overlay.png") as drawn:
        assert (np.asarray(drawn) == np.asarray(annotations.overlay_all(LARGE, expected))).all()
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["made_with"].items() >= TILING._asdict().items() and manifest["complete"]
    oracle.encoded.clear()
    assert all(outcome.before for outcome in do(a_job(overlay=True))) and not oracle.encoded


def test_a_coco_file_and_an_overlay_made_small(place, monkeypatch):
    from pycocotools.coco import COCO

    from samjax import preview

    monkeypatch.setattr(preview.shrink, "__defaults__", (200,))
    Oracle(monkeypatch, shapes_at_random(1))
    do(a_job(overlay=True, format="coco"))
    assert {"instances.json", "parts/a.json", "a_overlay.png"} < set(tree("out"))
    coco = COCO("out/instances.json")
    records = tiling.everything(SAM, LARGE, **NUMBERS)
    for found, mask in zip(coco.loadAnns(coco.getAnnIds(imgIds=[1])), found_in(records), strict=True):
        assert (coco.annToMask(found) == mask).all()
    with Image.open("out/a_overlay.png") as drawn:
        assert drawn.size == (200, 160)


def test_killed_within_a_picture_it_goes_on_with_the_next_tile(place, monkeypatch):
    oracle = Oracle(monkeypatch, shapes_at_random(1))
    do(a_job("whole", overlay=True))
    expected, encode = tree("whole"), oracle.encode
    for limit in (1, 7, A + 1, A + AGAIN + 1):
        shutil.rmtree("out", ignore_errors=True)
        oracle.encoded.clear()

        def killing(*args, limit=limit):
            if len(oracle.encoded) == limit:
                raise Killed
            return encode(*args)

        monkeypatch.setattr(tiling, "_encode", killing)
        with pytest.raises(Killed):
            do(a_job(overlay=True))
        kept = sorted(Path("out/unfinished").rglob("window-*.npz"))
        assert len(kept) == (limit if limit < A + AGAIN else 1)
        kept[0].write_bytes(b"damaged")
        monkeypatch.setattr(tiling, "_encode", encode)
        oracle.encoded.clear()
        do(a_job(overlay=True))
        assert len(oracle.encoded) == ALL - limit + 1
        assert tree("out") == expected and not Path("out/unfinished").exists()


def test_tiles_of_another_picture_or_other_settings_are_not_used(place, monkeypatch):
    oracle = Oracle(monkeypatch, shapes_at_random(1))
    do(a_job("whole"))
    a_picture = Path("photos/a.png").read_bytes()

    def kill(after, **values):
        oracle.encoded.clear()

        def told(name, done, _):
            if done == after:
                raise Killed

        with pytest.raises(Killed):
            do(a_job(**values), restart=True, progress=told)

    kill(7)
    Image.fromarray(LARGE[::-1]).save("photos/a.png")
    kill(5)
    assert len(oracle.encoded) == 5
    Path("photos/a.png").write_bytes(a_picture)
    kill(3, settings=Settings(min_mask_region_area=1, output_mode="coco_rle"))
    assert len(oracle.encoded) == 3
    oracle.encoded.clear()
    do(a_job(), restart=True)
    assert len(oracle.encoded) == ALL and tree("out") == tree("whole")


def test_what_fails_is_named_and_the_rest_is_done(place, monkeypatch):
    Path("photos/broken.png").write_bytes(Path("photos/a.png").read_bytes()[:900])
    Path("photos/text.tif").write_text("no picture")
    oracle = Oracle(monkeypatch, shapes_at_random(1))
    outcomes = {outcome.name: outcome for outcome in do(a_job())}
    assert outcomes["a.png"].reason is None is outcomes["sub/b.tif"].reason
    assert outcomes["broken.png"].reason.startswith("is damaged") and "not an image" in outcomes["text.tif"].reason
    assert set(tree("out")) == {"a.json", "sub/b.json", "manifest.json"}

    def fail(*args):
        if len(oracle.encoded) == 5:
            raise RuntimeError("no\nmemory")
        return oracle.encode(*args)

    shutil.rmtree("out")
    oracle.encoded.clear()
    monkeypatch.setattr(tiling, "_encode", fail)
    outcomes = {outcome.name: outcome for outcome in do(a_job())}
    assert outcomes["a.png"].reason == "RuntimeError: no memory" and "a.json" not in tree("out")
    assert len(list(Path("out/unfinished/a.tiles").iterdir())) == 5
    monkeypatch.setattr(tiling, "_encode", oracle.encode)
    do(a_job())
    assert set(tree("out")) == {"a.json", "sub/b.json", "manifest.json"}


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config = dataclasses.replace(SMALL_VIT, encoder=ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=3))
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(random_params(config)).items()}
    convert.write(path, convert.Model(config, tensors))
    return path


def run(*args, weights):
    return main(["everything", *args, "--model", str(weights)])


def test_the_command(place, weights, capsys):
    shutil.rmtree("photos")
    Path("photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(noise).save("photos/a.png")
    assert run("photos", "--out", "out", "--overlay", *SMALL, *LOOSE, weights=weights) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 image, ") and not err and set(tree("out")) == {"a.json", "a_overlay.png", "manifest.json"}
    import samjax

    settings = Settings(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, output_mode="coco_rle")
    expected = tiling.everything(samjax.load(weights), noise, settings, tile=64, halo=16, spacing=16)
    written = json.loads(Path("out/a.json").read_text())["annotations"]
    assert len(written) == len(expected) > 5
    assert [one["segmentation"] for one in written] == [one["segmentation"] for one in expected]
    assert run("photos", "--out", "out", "--overlay", "--tile", "64", *SMALL[1:], *LOOSE, weights=weights) == 0
    assert "1 done before" in capsys.readouterr().out  # the same numbers
    before = tree("out")
    for changed, said in ((["--tile", "60", *SMALL[1:]], "tile was 64, now 60"), ([], "tile was 64, now None")):
        assert run("photos", "--out", "out", *changed, *LOOSE, weights=weights) == 2
        assert said in capsys.readouterr().err and tree("out") == before


def test_there_is_a_word_about_tiles_where_they_would_help(place, weights, capsys, monkeypatch):
    picture = type("", (), {"hw": (70, 90)})()
    monkeypatch.setattr(command, "_open", lambda *args: job.Model(lambda path: picture, lambda pictures: (
        [] for _ in pictures)))
    monkeypatch.setattr(command, "HUGE", 90 * 70 - 1)
    for said in ("samjax: hint: a.png of 90 x 70 px (and 1 more) was shrunk to 96 px for the model; --tile finds small "
                 "objects too\n", ""):  # the second time nothing is left to do
        assert run("photos", "--out", "out", weights=weights) == 0
        assert capsys.readouterr().err == said
    assert run("photos", "--out", "tiles", *SMALL, weights=weights) == 0
    monkeypatch.setattr(command, "HUGE", 90 * 70)
    assert run("photos", "--out", "out", "--restart", weights=weights) == 0
    assert not capsys.readouterr().err


def test_progress_is_a_bar_for_each_picture():
    from tqdm import tqdm

    out = io.StringIO()
    with tqdm(total=None, unit="tile", file=out, mininterval=0) as bar:
        tell = Meter(bar)
        for name, total in (("a.png", 3), ("b.png", 2)):
            for done in range(1, total + 1):
                tell(name, done, total)
        assert (bar.n, bar.total, bar.desc) == (2, 2, "b.png: ")
    assert "a.png" in out.getvalue() and "3/3" in out.getvalue()


WRONG = {
    "no tile": (["--halo", "9"], "--halo is for pictures in tiles: give --tile as well"),
    "a path after": (["--tile", "photo.tif"], "'photo.tif' is no number of pixels (PATHs come before --tile"),
    "zero": (["--tile", "0"], "tile must be a number above 0, not 0"),
    "no number": (["--tile", "--scale", "big"], "'big' is neither a number nor a ratio"),
    "a ratio": (["--tile", "--scale", "1/0"], "'1/0' is neither a number nor a ratio"),
    "NaN": (["--tile", "--spacing", "nan"], "spacing must be a number above 0, not nan"),
    "agreement": (["--tile", "--agreement", "1.5"], "agreement must be a number of 0 to 1, not 1.5"),
    "labels": (["--tile", "--label-map"], "--label-map is not supported with --tile"),
    "preset": (["--tile", "--preset", "dense"], "preset dense looks at crops, which tiles take the place of"),
    "crops": (["--tile", "--crop-n-layers", "1"], "crops within tiles are not supported"),
    "too large": (["--tile", "65"], "a tile of 65 px at scale 1 does not fit the model's frame of 64 px"),
    "halo": (["--tile", "--halo", "16", "--points-per-side", "2"], "a halo of 16 px is less than the spacing"),
    "core": (["--tile", "--halo", "32"], "leaves too little between halos of 32 px"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(place, weights, capsys, case):
    args, message = WRONG[case]
    assert run("photos", "--out", "out", *args, weights=weights) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("samjax: error: ") and err.count("\n") == 1 and message in err
    assert not Path("out").exists()


def test_help(capsys):
    assert main(["everything", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name} " in out for name in ("tile", "halo", "scale", "spacing", "agreement"))
    assert max(map(len, out.splitlines())) <= 120
