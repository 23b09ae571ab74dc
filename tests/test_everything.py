"""`samjax everything`: which pictures it takes, what it writes, what it does with broken ones, and how it goes on."""

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from PIL import Image

import convert
import samjax
from convert.tensor import Tensor
from samjax import job, rle
from samjax.annotations import label_map
from samjax.automatic import Picture
from samjax.cli import main
from samjax.commands.everything import OPTIONS
from samjax.config import ViT
from samjax.errors import InputError
from samjax.inputs import find_sources
from samjax.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
LOOSE = ["--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "1"]
VALUES = dict(points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
MODEL = ["--model", "model.safetensors"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    config = replace(SMALL_VIT, encoder=ViT(width=16, depth=2, heads=2, global_blocks=(1,), window=3))
    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(random_params(config)).items()}
    convert.write(path, convert.Model(config, tensors))
    return path


@pytest.fixture
def work(model, tmp_path, monkeypatch):
    """The current directory: the model and three pictures, one in a subfolder."""
    shutil.copy(model, tmp_path)
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        picture(tmp_path / "photos" / name, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path, seed=0, size=(60, 40), mode="RGB", **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(array).convert(mode).save(path, **settings)


def everything(*args):
    return main(["everything", *args, *MODEL, *LOOSE])


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file()}


def read(path):
    return json.loads(Path(path).read_text())


# -- which pictures ------------------------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def found(*paths, out="out"):
    sources, others = find_sources(paths, out)
    assert [source.name for source in sources] == sorted(source.name for source in sources)
    assert all(os.path.basename(source.path) == os.path.basename(source.name) for source in sources)
    return {source.name: source.stem for source in sources}, others


def test_folders_files_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "p/b.JPG", "p/a.tiff", "p/s/c.webp", "p/notes.txt", "p/s/d.csv", "p/.hidden.png", "p/.dir/x.png",
          "q/e.png", "p/out/a_overlay.png", "odd.xyz")
    assert found("p", out="p/out") == ({"a.tiff": "a", "b.JPG": "b", "s/c.webp": "s/c"}, 2)
    assert found("p/a.tiff", "p", "./p/../p/s/c.webp", out="p/out")[0].keys() == {"a.tiff", "b.JPG", "s/c.webp"}
    assert found("p/*/*", "q", out="p/out") == ({"s/c.webp": "s/c", "e.png": "e"}, 1)
    assert found("**/*.png", out="p/out") == ({"q/e.png": "q/e"}, 0)
    assert found("p/s*", "q/e.png") == ({"s/c.webp": "s/c", "e.png": "e"}, 1)
    assert found("odd.xyz") == ({"odd.xyz": "odd"}, 0)
    assert find_sources(["q"], "q", drawing=False)[0][0].name == "e.png"
    with pytest.raises(InputError, match="--out q is the folder"):
        find_sources(["q"], "q")
    assert found("q", "p/out", out=".") == ({"e.png": "e", "a_overlay.png": "a_overlay"}, 0)


def test_names_that_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "p/x.jpg", "p/x.png", "p/x.png.gif", "q/x.jpg", "q/s/manifest.png", "r/manifest.png")
    assert found("p")[0] == {"x.jpg": "x", "x.png": "x.png", "x.png.gif": "x.png.gif"}
    assert found("q", "p")[0] == {"p/x.jpg": "p/x", "p/x.png": "p/x.png", "p/x.png.gif": "p/x.png.gif",
                                  "q/s/manifest.png": "q/s/manifest", "q/x.jpg": "q/x"}
    assert found("p/x.jpg", "q/x.jpg") == found("q/x.jpg", "p/x.jpg") == ({"p/x.jpg": "p/x", "q/x.jpg": "q/x"}, 0)
    touch(tmp_path, "r/manifest-00000-of-00002.png")
    assert found("r")[0] == {name: name for name in ("manifest.png", "manifest-00000-of-00002.png")}
    (tmp_path / "u").mkdir()
    touch(tmp_path, "u/A.png", "u/a.jpg")
    assert sorted(stem.lower() for stem in found("u")[0].values()) == ["a", "a.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "p/a.png", "far/b.png")
    os.symlink("../p", tmp_path / "p/round")
    os.symlink("../far", tmp_path / "p/link")
    os.symlink("nowhere.png", tmp_path / "p/lost.png")
    os.mkfifo(tmp_path / "p/pipe.png")
    assert found("p") == ({"a.png": "a", "link/b.png": "link/b", "lost.png": "lost"}, 1)


# -- what it writes ------------------------------------------------------------------------------------------


def test_sa1b_files_hold_what_sam_everything_finds(work, capsys):
    assert everything("photos", "--out", "out", "--overlay", "--label-map") == 0
    out, err = capsys.readouterr()
    assert not err and out.startswith("3 images, ") and "0 failures, 0 skipped, " in out and out.endswith("-> out\n")
    stems = "a", "b", "sub/c"
    assert set(tree("out")) == {"manifest.json"} | {f"{stem}{end}" for stem in stems
                                                    for end in (".json", "_overlay.png", "_labels.png")}
    sam, total = samjax.load("model.safetensors"), 0
    for stem, name in zip(stems, ("a.png", "b.jpg", "sub/c.png")):
        written = read(f"out/{stem}.json")
        records = sam.everything(f"photos/{name}", **VALUES, output_mode="coco_rle")
        total += len(records)
        image = written["image"]
        assert (image["file_name"], image["width"], image["height"]) == (name, 60, 40)
        assert len(written["annotations"]) == len(records) > 5
        for i, (annotation, record) in enumerate(zip(written["annotations"], records)):
            if not np.isfinite(record["stability_score"]):
                record["stability_score"] = 0.0
            assert annotation == {"id": i, **record}
        with Image.open(f"out/{stem}_labels.png") as labels:
            assert (np.asarray(labels) == label_map(records, (40, 60))).all()
        with Image.open(f"out/{stem}_overlay.png") as overlay:
            assert overlay.size == (60, 40)
    assert len({read(f"out/{stem}.json")["image"]["image_id"] for stem in stems}) == 3
    manifest = read("out/manifest.json")
    assert manifest["complete"] and (manifest["images"], manifest["masks"], manifest["failures"]) == (3, total, [])
    sha256 = manifest["model"]["sha256"]
    assert sha256 == job.fingerprint("model.safetensors") and len(sha256) == 64
    assert manifest["made_with"].items() >= VALUES.items()
    assert f"{total:,} masks" in out


def test_a_coco_file_that_pycocotools_reads(work, capsys):
    coco = pytest.importorskip("pycocotools.coco").COCO
    assert everything("photos", "--out", "out", "--format", "coco") == 0
    assert {name for name in tree("out") if not name.startswith("parts/")} == {"instances.json", "manifest.json"}
    loaded = coco("out/instances.json")
    assert [image["file_name"] for image in loaded.loadImgs([1, 2, 3])] == ["a.png", "b.jpg", "sub/c.png"]
    assert sorted(loaded.anns) == list(range(1, len(loaded.anns) + 1))
    sam = samjax.load("model.safetensors")
    for number, image in loaded.imgs.items():
        records = sam.everything(f"photos/{image['file_name']}", **VALUES)
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[number]))
        assert len(annotations) == len(records)
        for annotation, record in zip(annotations, records):
            assert (loaded.annToMask(annotation) == record["segmentation"]).all()
            assert annotation["area"] == record["area"] and annotation["score"] == record["predicted_iou"]
    before = tree("out")
    capsys.readouterr()
    assert everything("photos", "--out", "out", "--format", "coco") == 0
    assert "3 done before" in capsys.readouterr().out and tree("out") == before


def test_odd_and_broken_pictures(work, capsys):
    folder = work / "odd"
    picture(folder / "cmyk.jpg", mode="CMYK")
    picture(folder / "grey.png", mode="L")
    picture(folder / "one.png", size=(1, 1))
    picture(folder / "wide.png", size=(30000, 3))
    frames = [Image.new("P", (20, 30), colour) for colour in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "cut.png").write_bytes((work / "photos/a.png").read_bytes()[:3000])
    (folder / "text.jpg").write_text("no picture")
    (folder / "void.png").write_bytes(b"")
    (folder / "notes.txt").write_text("none either")
    assert everything("odd", "--out", "out", "--overlay", "--json") == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)
    bad = ["cut.png", "text.jpg", "void.png"]
    assert (summary["images"], summary["skipped"], list(summary["failures"])) == (5, 1, bad)
    lines = err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["samjax", name] for name in bad]
    assert "is damaged" in lines[0] and "not an image" in lines[1] and "is empty" in lines[2]
    good = "cmyk", "grey", "moving", "one", "wide"
    assert set(tree("out")) == {"manifest.json"} | {f"{s}{end}" for s in good for end in (".json", "_overlay.png")}
    assert read("out/wide.json")["image"]["width"] == 30000
    manifest = read("out/manifest.json")
    assert manifest["images"] == 5 and [failure["file"] for failure in manifest["failures"]] == bad
    before = tree("out")
    assert everything("odd", "--out", "out", "--overlay") == 1  # they are tried again
    out, err = capsys.readouterr()
    assert err.splitlines() == lines and out.startswith("5 images, ") and "3 failures, 1 skipped, 5 done before" in out
    assert tree("out") == before
    for name in bad:
        picture(folder / name)
    assert everything("odd", "--out", "out", "--overlay") == 0
    assert {name: data for name, data in tree("out").items() if name in before and name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"}


def test_a_picture_that_only_fails_in_the_model_is_named(work, capsys, monkeypatch):
    from samjax import automatic

    original = automatic._candidates

    def fail(lockstep, group, *rest):
        if any(picture.hw == (7, 9) for picture in group):
            raise RuntimeError("no\nmemory")
        return original(lockstep, group, *rest)

    picture(work / "photos/bad.png", size=(9, 7))
    monkeypatch.setattr(automatic, "_candidates", fail)
    assert everything("photos", "--out", "out") == 1
    out, err = capsys.readouterr()
    assert err == "samjax: bad.png: RuntimeError: no memory\n" and out.startswith("3 images, ")


# -- going on ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def records_of(pixels):
    """In place of a model."""
    masks = [pixels[..., 0] > 128, pixels[..., 1] > 200]
    return [{"segmentation": {"size": list(mask.shape), "counts": rle.compress(rle.encode(mask))},
             "area": int(mask.sum()), "bbox": [0, 0, 3, 3], "predicted_iou": 0.75, "point_coords": [[1.5, 2.0]],
             "stability_score": score, "crop_box": [0, 0, 9, 9]} for mask, score in zip(masks, (0.9, float("nan")))]


def a_job(out="out", **values):
    sources, skipped = find_sources(["photos"], out)
    model = {"name": "m", "architecture": "custom", "sha256": "0" * 64, "dtype": "float32"}
    return job.Job(sources, Path(out), **{"model": model, "settings": Settings(output_mode="coco_rle"),
                                          "skipped": skipped, **values})


def model_of(segment):
    """A job's model made of a function of one picture."""
    return lambda: job.Model(lambda path: Picture(samjax.read_image(path)), lambda pictures: (
        segment(picture.pixels) for picture in pictures))


def do(task, restart=False, segment=records_of):
    return list(job.run(task, model_of(segment), restart))


def test_the_manifest_tells_what_is_drawn_of_all(work):
    drawn = lambda: (read("out/manifest.json")["overlay"], read("out/manifest.json")["label_map"])
    do(a_job(overlay=True))
    assert drawn() == (True, False)
    do(a_job())  # nothing is left to do, and what was drawn is still there
    assert drawn() == (True, False)
    Path("out/a_overlay.png").unlink()
    do(a_job())
    assert drawn() == (False, False)


def test_what_was_drawn_of_other_masks_is_not_told_of(work):
    do(a_job(overlay=True, format="coco"))
    shutil.rmtree("out/parts")  # which is allowed: the drawings are not known to be stale then
    do(a_job(format="coco", settings=Settings(points_per_side=3)), restart=True)
    assert Path("out/a_overlay.png").exists() and read("out/manifest.json")["overlay"] is False


def test_a_lone_picture_that_is_damaged_is_a_failure(work, capsys):
    data = Path("photos/b.jpg").read_bytes()
    Path("photos/b.jpg").write_bytes(data[: len(data) // 2])
    assert everything("photos/b.jpg", "--out", "out") == 1
    assert read("out/manifest.json")["failures"][0]["file"] == "b.jpg"


@pytest.mark.parametrize("form", job.FORMATS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_rename(work, monkeypatch, form, after):
    settings = dict(format=form, overlay=True, label_map=True)
    assert [(o.masks, o.before) for o in do(a_job("whole", **settings))] == [(2, False)] * 3
    expected, replace_, calls = tree("whole"), os.replace, []

    def counted(source, target):
        calls.append(target)
        if len(calls) == limit and not after:
            raise Killed
        replace_(source, target)
        if len(calls) == limit:
            raise Killed

    monkeypatch.setattr(os, "replace", counted)
    for limit in range(1, 99):
        calls.clear()
        shutil.rmtree("out", ignore_errors=True)
        try:
            do(a_job(**settings))
        except Killed:
            touch(Path("out/.samjax"), "unfinished.json", "unfinished.png")  # a killed process removes nothing
        else:
            break
        finished = len([path for path in calls[:limit if after else limit - 1]
                        if os.fspath(path).endswith(("a.json", "b.json", "c.json"))])
        outcomes = do(a_job(**settings))
        assert sum(outcome.before for outcome in outcomes) == finished
        assert tree("out") == expected
    assert limit > 10


def test_what_is_done_is_not_redone_unless_it_must_be(work):
    calls = []

    def segment(pixels):
        calls.append(pixels.shape)
        return records_of(pixels)

    do(a_job(), segment=segment)
    before = tree("out")
    assert all(outcome.before for outcome in do(a_job(), segment=None)) and tree("out") == before
    (work / "out/b.json").write_bytes(before["b.json"][:50])  # as after a power failure
    del calls[:]
    do(a_job(), segment=segment)
    assert len(calls) == 1 and tree("out") == before
    (work / "out/a.json").write_bytes(before["b.json"])  # of another picture
    do(a_job(), segment=segment)
    assert len(calls) == 2 and tree("out") == before
    do(a_job(overlay=True), segment=segment)
    assert len(calls) == 5 and before.items() - tree("out").items() == {("manifest.json", before["manifest.json"])}
    do(a_job(overlay=True), restart=True, segment=segment)
    assert len(calls) == 8
    picture(work / "photos/new.png", 9)
    assert [outcome.before for outcome in do(a_job(), segment=segment)].count(True) == 3 and len(calls) == 9


def test_a_picture_that_changed_is_done_again(work):
    do(a_job())
    before, old = tree("out"), (work / "photos/a.png").read_bytes()
    picture(work / "photos/a.png", 77)
    assert [outcome.name for outcome in do(a_job()) if not outcome.before] == ["a.png"]
    assert {name for name, data in tree("out").items() if data != before[name]} == {"a.json"}
    flipped = old[:-20] + bytes(byte ^ 1 for byte in old[-20:])  # the same size, and no longer a picture
    (work / "photos/a.png").write_bytes(flipped)
    assert [outcome.name for outcome in do(a_job(overlay=True)) if outcome.reason] == ["a.png"]
    assert not (work / "out/a.json").exists() and not (work / "out/a_overlay.png").exists()
    (work / "photos/a.png").write_bytes(old)
    do(a_job())
    assert {name: data for name, data in tree("out").items() if "overlay" not in name} == before


@pytest.mark.parametrize("form", job.FORMATS)
def test_processes_share_a_job(work, form):
    settings = dict(format=form, overlay=True)
    for name in ("d.png", "e.jpg"):
        touch(work / "photos", name)  # they are broken
    outcomes = do(a_job("whole", **settings))
    whole = tree("whole")
    first, second = (a_job(**settings, process=i, processes=2) for i in range(2))
    assert [outcome.name for outcome in do(second)] == ["b.jpg", "e.jpg"]
    assert not read("out/manifest.json")["complete"] and read("out/manifest-00001-of-00002.json")["complete"]
    assert [outcome.name for outcome in do(first)] == ["a.png", "d.png", "sub/c.png"]
    assert tree("out") == whole and len(outcomes) == 5
    for order in ((first, second), (second, first)):  # once more, one after the other: either may be the last
        for process in order:
            assert all(outcome.before or outcome.reason for outcome in do(process))
        assert tree("out") == whole
    picture(work / "photos/b.jpg", 5)
    do(a_job("whole", **settings))
    do(first)
    assert not read("out/manifest.json")["complete"]  # the other's share has changed
    do(second)
    assert tree("out") == tree("whole") != whole
    picture(work / "photos/a.png", 6)
    do(a_job(**settings, process=1, processes=3))
    assert "manifest-00001-of-00003.json" in tree("out")
    for folder in ("out", "whole"):
        do(a_job(folder, **settings))
    assert tree("out") == tree("whole")


def test_processes_at_the_same_time(work):
    do(a_job("whole"))
    first, second = (job.run(a_job(process=i, processes=2), model_of(records_of)) for i in range(2))
    next(first)
    next(second)
    for alone in (a_job(), a_job(process=0, processes=2)):
        with pytest.raises(InputError, match="another process is writing to out"):
            do(alone)
    assert len([*first, *second]) == 1
    assert tree("out") == tree("whole")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_process_that_was_killed_is_cleared_away(work):
    do(a_job("whole"))
    touch(work / "out/.samjax/process-00003-of-00007", "lock", "unfinished.json")  # and locked by no one
    do(a_job(process=0, processes=2))
    assert not list((work / "out").glob(".samjax"))
    do(a_job(process=1, processes=2))
    assert tree("out") == tree("whole")


def test_readings_keep_their_order_around_broken_ones(work):
    for number in range(20):
        touch(work / "photos", f"x{number:02d}.png") if number % 3 else picture(work / f"photos/x{number:02d}.png", 1)
    names = [source.name for source in a_job().sources]
    in_order = lambda pictures: iter([records_of(picture.pixels) for picture in pictures])  # all before the first
    running = job.run(a_job(), lambda: job.Model(lambda path: Picture(samjax.read_image(path)), in_order, ahead=4))
    outcomes = list(running)
    assert [outcome.name for outcome in outcomes] == names
    assert [outcome.name for outcome in outcomes if outcome.reason] == [
        f"x{number:02d}.png" for number in range(20) if number % 3]


def test_other_settings_need_a_restart(work, capsys):
    assert everything("photos", "--out", "out") == 0
    before = tree("out")
    capsys.readouterr()
    assert everything("photos", "--out", "out", "--crop-nms-thresh", "0.5") == 2
    assert capsys.readouterr().err == (
        "samjax: error: out holds masks that were made otherwise (crop_nms_thresh was 0.7, now 0.5): choose another "
        "--out, or give --restart to replace them\n")
    assert everything("photos", "--out", "out", "--dtype", "bfloat16") == 2
    assert everything("photos", "--out", "out", "--format", "coco") == 2 and tree("out") == before
    capsys.readouterr()
    assert everything("photos", "--out", "out", "--crop-nms-thresh", "0.5", "--restart") == 0
    assert "done before" not in capsys.readouterr().out
    after = tree("out")
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)


def test_a_folder_without_masks_takes_other_settings(work):
    """As after a first try of which nothing came."""
    for name in ("a.png", "b.jpg", "sub/c.png"):
        (work / "photos" / name).write_text("broken")
    assert [outcome.masks for outcome in do(a_job())] == [None] * 3
    picture(work / "photos/a.png")
    assert [outcome.masks for outcome in do(a_job(settings=Settings(points_per_side=5)))] == [2, None, None]
    with pytest.raises(InputError, match="made otherwise"):
        do(a_job())


def test_a_restart_that_was_killed_leaves_nothing_of_the_old_settings(work):
    do(a_job("whole", settings=Settings(points_per_side=5, output_mode="coco_rle")))
    do(a_job())
    other = a_job(settings=Settings(points_per_side=5, output_mode="coco_rle"))
    running = job.run(other, model_of(records_of), restart=True)
    next(running)
    running.close()
    assert [outcome.before for outcome in do(other)] == [True, False, False]
    assert tree("out") == tree("whole")


def test_nothing_is_left_that_was_drawn_of_other_masks(work):
    do(a_job(label_map=True))
    assert len(list(Path("out").rglob("*_labels.png"))) == 3
    other = {"settings": Settings(points_per_side=5, output_mode="coco_rle")}
    do(a_job(**other), restart=True)
    assert not list(Path("out").rglob("*_labels.png"))
    assert not any(outcome.before for outcome in do(a_job(**other, label_map=True)))


def test_manifests_of_others_are_kept(work):
    Path("out").mkdir()
    Path("out/manifest-00003-of-00008.json").write_text('{"theirs": 1}')
    do(a_job())
    assert Path("out/manifest-00003-of-00008.json").read_text() == '{"theirs": 1}'


def test_paths_may_be_path_objects(work):
    assert find_sources([Path("photos")], Path("out")) == find_sources(["photos"], "out")
    with pytest.raises(InputError, match="no"):
        find_sources([Path("nowhere")], Path("out"))


def test_two_at_once(work):
    running = job.run(a_job(), model_of(records_of))
    next(running)
    with pytest.raises(InputError, match="another process is writing to out"):
        do(a_job())
    running.close()
    do(a_job())


def test_a_full_disk_ends_the_job_and_it_can_go_on(work, monkeypatch):
    do(a_job("whole"))
    dumps = json.dumps

    def full(value, **settings):
        if "b.jpg" in repr(value):
            raise OSError(28, "No space left on device")
        return dumps(value, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(job.json, "dumps", full)
        with pytest.raises(InputError, match=r"cannot write out/b.json: no space left on device; .* goes on"):
            do(a_job())
    assert set(tree("out")) == {"a.json", "manifest.json"}
    assert [outcome.before for outcome in do(a_job())] == [True, False, False] and tree("out") == tree("whole")


def process(*args, cwd, cache):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "SAMJAX_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-m", "samjax", "everything", *args, *MODEL, *LOOSE], cwd=cwd,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_random_moments(work):
    """Real processes, killed with SIGKILL: the files are those of an undisturbed run."""
    for number in range(16):
        picture(work / f"photos/more/{number}.png", 10 + number, size=(300, 200))
    args = dict(cwd=work, cache=work / "cache")
    whole = process("photos", "--out", "whole", "--overlay", **args)
    out, err = whole.communicate(timeout=300)
    assert (whole.returncode, err) == (0, "") and out.startswith("19 images, ")
    generator, kills = random.Random(0), 0
    for least in (0, 11):
        running = process("photos", "--out", "out", "--overlay", **args)
        while running.poll() is None and len(list(work.glob("out/**/*.json"))) < least:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05 if least else 2))
        running.kill()
        running.communicate(timeout=300)
        kills += running.returncode == -signal.SIGKILL
        written = tree("out") if (work / "out").exists() else {}
        assert all(data == (work / "whole" / name).read_bytes() for name, data in written.items()
                   if not name.startswith(".samjax/") and name != "manifest.json")
    assert kills >= 2
    last = process("photos", "--out", "out", "--overlay", **args)
    out, err = last.communicate(timeout=300)
    assert (last.returncode, err) == (0, "") and "done before" in out
    assert tree("out") == tree("whole")


# -- arguments -----------------------------------------------------------------------------------------------


def test_options_are_the_settings_by_their_official_names():
    defaults = vars(Settings())
    assert {name: default for name, _, default, _ in OPTIONS} == {
        field.name: defaults[field.name] for field in fields(Settings)
        if field.name not in ("point_grids", "output_mode")}
    assert all(type(default) is kind for _, kind, default, _ in OPTIONS)


@pytest.mark.torch
def test_every_official_setting_is_an_option():
    pytest.importorskip("torch")
    import torchvision_standin

    torchvision_standin.install()
    official = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    names = set(inspect.signature(official).parameters) - {"model", "point_grids", "output_mode"}
    assert names == {name for name, *_ in OPTIONS} - {"max_mask_area_fraction"}


def test_help(capsys):
    assert main(["everything", "--help"]) == 0
    out, err = capsys.readouterr()
    assert "examples:" in out and not err and max(map(len, out.splitlines())) <= 120
    assert all(f"--{name.replace('_', '-')} " in out for name, *_ in OPTIONS)


def test_options_reach_the_settings(work):
    assert main(["everything", "photos/a.png", "--out", "out", *MODEL, "--preset", "fast", "--crop-n-layers", "1",
                 "--points-per-side", "4", "--min-mask-region-area", "7"]) == 0
    made_with = read("out/manifest.json")["made_with"]
    assert made_with.items() >= {"points_per_side": 4, "crop_n_layers": 1, "min_mask_region_area": 7}.items()


WRONG = {
    "nothing": ([], "required: PATH, --out"),
    "no out": (["photos"], "required: --out"),
    "no such folder": (["photo", "--out", "out"], "photo: no such file or folder"),
    "no such name": (["photos/*.tif", "--out", "out"], "photos/*.tif: no file has such a name"),
    "a NUL": (["a\0b", "--out", "out"], "no such file or folder"),
    "no pictures": (["papers", "--out", "out"], "no pictures in papers (1 other file)"),
    "no picture": (["papers/notes.txt", "--out", "out"], "papers/notes.txt is not an image"),
    "out is the input": (["photos", "--out", "photos", "--overlay"], "--out photos is the folder that the pictures"),
    "half a place": (["photos", "--out", "out", "--processes", "2"], "--processes and --process go together"),
    "no such process": (["photos", "--out", "out", "--processes", "2", "--process", "2"], "none of 0 to 1"),
    "no address": (["photos", "--out", "out", "--processes", "2", "--process", "0", "--coordinator", "here"],
                   "--coordinator here is not HOST:PORT"),
    "two ways": (["photos", "--out", "out", "--distributed", "--process", "0"], "--distributed learns the number of"),
    "out is a file": (["photos", "--out", "papers/notes.txt"], "notes.txt is a file, not a directory"),
    "preset": (["photos", "--out", "out", "--preset", "best"], "invalid choice: 'best'"),
    "format": (["photos", "--out", "out", "--format", "yolo"], "invalid choice: 'yolo'"),
    "unknown": (["photos", "--out", "out", "--threads", "4"], "arguments: --threads 4 (see samjax everything --help)"),
    "no number": (["photos", "--out", "out", "--points-per-side", "many"], "invalid int value: 'many'"),
    "too small": (["photos", "--out", "out", "--points-per-side", "0"], "points_per_side must be a whole number of"),
    "NaN": (["photos", "--out", "out", "--pred-iou-thresh", "nan"], "pred_iou_thresh must be a number of 0 to 2"),
    "too many": (["photos", "--out", "out", "--crop-n-layers", "9"], "crop_n_layers must be a whole number of 0 to 5"),
    "model": (["photos", "--out", "out", "--model", "mobilesam"], "did you mean mobile_sam?"),
    "others' files": (["photos", "--out", "busy", *MODEL], "busy/a.json exists and was not written by such a job"),
    "other manifest": (["photos", "--out", "strange", *MODEL], "strange/manifest.json is not of samjax everything"),
    "out over inputs": (["photos/x.png", "photos/x_overlay.png", "--out", "photos", "--overlay", *MODEL],
                        "photos/x_overlay.png is one of the pictures"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(work, capsys, case):
    touch(work, "papers/notes.txt", "busy/a.json")
    touch(work / "strange", "manifest.json")
    for name in ("x.png", "x_overlay.png"):
        picture(work / "photos" / name)
    before = tree(work)
    args, message = WRONG[case]
    assert main(["everything", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("samjax: error: ") and err.count("\n") == 1 and message in err
    assert tree(work) == before


def test_fingerprints_of_directories(tmp_path):
    touch(tmp_path, "m/a", "m/b/c")
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    assert job.fingerprint(tmp_path / "m") == job.fingerprint(tmp_path / "n")
    (tmp_path / "n/b/c").write_text("else")
    assert job.fingerprint(tmp_path / "m") != job.fingerprint(tmp_path / "n")
