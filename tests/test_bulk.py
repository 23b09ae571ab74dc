"""samjax.embed: what it writes, what it keeps, and that its reader gives back what the encoder made."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SMALL_VIT, random_params
from PIL import Image

import samjax
from samjax import bulk
from samjax.automatic import Picture
from samjax.cli import main
from samjax.config import ViT
from samjax.embeddings import Embeddings, to_float32
from samjax.errors import InputError
from samjax.inputs import find_sources
from samjax.predict import Sam

CONFIG = replace(SMALL_VIT, encoder=ViT(width=16, depth=1, heads=2, global_blocks=(0,), window=3))
SIZES = [(60, 40), (30, 50), (96, 64), (200, 20), (64, 64)]


@pytest.fixture(scope="module")
def sam():
    return Sam(CONFIG, random_params(CONFIG))


def picture(path, seed, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(array).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for seed, size in enumerate(SIZES):
        picture(tmp_path / f"photos/{'sub/' if seed % 2 else ''}{seed}.png", seed, size)
    (tmp_path / "photos/notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file()}


@pytest.mark.parametrize("store, digits", [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_the_reader_gives_what_encode_gives(sam, photos, store, digits):
    done = samjax.embed(sam, "photos", "out", store=store, shard=2)
    assert done == {"images": 5, "failures": {}, "skipped": 1, "done_before": 0, "complete": True}
    found = pickle.loads(pickle.dumps(Embeddings("out")))
    assert found.names == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"] and len(found) == 5
    assert (found.info["dtype"], found.info["shape"], found.info["shards"]) == (store, [*CONFIG.grid, 32], 3)
    for i, name in enumerate(found.names):
        one, whole = found[i], sam.encode(photos / name)
        assert one.features.dtype == np.float32 and one.features.flags.writeable
        np.testing.assert_allclose(one.features, whole.features[0], atol=1e-5, rtol=digits)
        width, height = SIZES[int(Path(name).stem)]
        assert one.image_size.tolist() == [height, width] and one.name == name
        scale = min(64 / height, 96 / width)
        np.testing.assert_allclose(one.size, [height * scale, width * scale], atol=0.51)
        assert (found[name].features == one.features).all() and name in found
    with pytest.raises(InputError, match="out has no embedding of x.png"):
        found["x.png"]


def test_bfloat16_is_read_exactly():
    values = np.float32([0, 1, -2.5, 3e38, 1e-30, 0.1])
    stored = np.asarray(jax.numpy.asarray(values).astype("bfloat16"))
    assert (to_float32(stored.view(np.uint16)) == stored.astype(np.float32)).all()


# -- what is kept --------------------------------------------------------------------------------------------


def plain(pixels):
    """In place of an encoder."""
    return np.full((2, 3, 4), pixels.mean(), np.float16)


def a_bulk(out="out", **values):
    sources, _ = find_sources(["photos"], out, False)
    model = {"name": "m", "architecture": "custom", "sha256": "0" * 64, "dtype": "float32"}
    return bulk.Bulk(sources, Path(out), model, **{"shard": 2, **values})


def do(task, restart=False, encode=plain):
    encoder = bulk.Encoder(lambda path: Picture(samjax.read_image(path)), lambda pictures: (
        encode(each.pixels) for each in pictures), lambda hw: hw)
    return list(bulk.run(task, lambda: encoder, restart))


def test_killed_at_every_rename(photos, monkeypatch):
    assert [name for name, *_ in do(a_bulk("whole"))] == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]
    expected, replace_, calls = tree("whole"), os.replace, []

    class Killed(BaseException):
        pass

    def counted(source, target):
        if len(calls) == limit:
            raise Killed
        calls.append(target)
        replace_(source, target)

    monkeypatch.setattr(os, "replace", counted)
    for limit in range(99):
        calls.clear()
        shutil.rmtree("out", ignore_errors=True)
        try:
            do(a_bulk())
        except Killed:
            pass
        else:
            break
        shards = sum(os.fspath(path).endswith(".json") and "shard" in path.name for path in calls)
        limit = 99
        calls.clear()
        assert sum(before for *_, before in do(a_bulk())) == min(5, 2 * shards)
        assert tree("out") == expected
    assert len(expected) == 7


def test_only_what_changed_is_done_again(photos):
    do(a_bulk())
    before = tree("out")
    assert all(earlier for *_, earlier in do(a_bulk(), encode=None)) and tree("out") == before
    old = (photos / "2.png").read_bytes()
    (photos / "2.png").write_bytes(b"broken")
    outcomes = {name: (reason, earlier) for name, reason, earlier in do(a_bulk())}
    assert "not an image" in outcomes.pop("2.png")[0] and all(earlier for _, earlier in outcomes.values())
    assert Embeddings("out").names == ["0.png", "4.png", "sub/1.png", "sub/3.png"]
    assert [failure["file"] for failure in Embeddings("out").info["failures"]] == ["2.png"]
    broken = tree("out")
    do(a_bulk("whole"))
    assert tree("whole") == broken  # the row is zeros again
    do(a_bulk())
    assert tree("out") == broken
    (photos / "2.png").write_bytes(old)
    assert [earlier for *_, earlier in do(a_bulk())].count(False) == 1 and tree("out") == before
    picture(photos / "1.png", 9)  # all later ones move to other rows
    do(a_bulk())
    shutil.rmtree("whole")
    do(a_bulk("whole"))
    assert tree("out") == tree("whole")
    for name in ("1.png", "sub/1.png", "4.png"):
        (photos / name).unlink()
    do(a_bulk())
    assert len(Embeddings("out")) == 3 and not Path("out/shard-00002.npy").exists()
    (photos / "sub/3.png").unlink()  # the last of a shard: nothing is left to encode
    do(a_bulk(), encode=None)
    shutil.rmtree("whole")
    do(a_bulk("whole"))
    assert len(Embeddings("out")) == 2 and tree("out") == tree("whole")


def test_processes_share_shards(photos):
    do(a_bulk("whole"))
    first, second = (a_bulk(process=i, processes=2) for i in range(2))
    assert [name for name, *_ in do(second)] == ["4.png", "sub/1.png"]
    with pytest.raises(InputError, match="out holds only a part of the embeddings"):
        Embeddings("out")
    do(first)
    assert tree("out") == tree("whole")
    do(second)
    assert tree("out") == tree("whole")


def test_folders_of_others_are_left_alone(photos):
    for name, content, message in (("index.json", "{}", "out/index.json is not of samjax embed"),
                                   ("shard-00001.npy", "", "shard-00001.npy exists and was not written by samjax")):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        Path("out", name).write_text(content)
        with pytest.raises(InputError, match=message):
            do(a_bulk())
    shutil.rmtree("out")
    do(a_bulk())
    with pytest.raises(InputError, match="made otherwise .shard was 2, now 3.: choose another --out, or give --rest"):
        do(a_bulk(shard=3))
    do(a_bulk(shard=3), restart=True)
    do(a_bulk("whole", shard=3))
    assert tree("out") == tree("whole")


def test_shards_of_others_are_kept(photos):
    Path("out").mkdir()
    others = {"shard-00000.tar": "tar", "shard-00007.npy": "array", "shard-00008.json": "{}"}
    for name, content in others.items():
        Path("out", name).write_text(content)
    do(a_bulk())
    assert {name: Path("out", name).read_text() for name in others} == others


def test_wrong_arguments(photos, capsys):
    for settings, message in (dict(store="int8"), "store .int8. is none"), (dict(shard=0), "shard must be a whole"):
        with pytest.raises(InputError, match=message):
            samjax.embed(None, "photos", "out", **settings)
    with pytest.raises(InputError, match="nowhere/index.json: no such file"):
        Embeddings("nowhere")
    for args, message in ((["nothing", "--out", "out"], "nothing: no such file or folder"),
                          (["photos", "--out", "out", "--model", "mobilesam"], "did you mean mobile_sam?"),
                          (["photos", "--out", "out", "--shard", "x"], "invalid int value"),
                          (["photos", "--out", "out", "--process", "1"], "go together")):
        assert main(["embed", *args]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and message in err
    assert not Path("out").exists()
    assert main(["embed", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_the_command(sam, photos, capsys, monkeypatch):
    import convert
    from convert.tensor import Tensor

    tensors = {name: Tensor.of(np.asarray(array)) for name, array in convert.flatten(sam.params).items()}
    convert.write(Path("model.safetensors"), convert.Model(CONFIG, tensors))
    (photos / "bad.png").write_bytes(b"")
    args = ["embed", "photos", "--out", "out", "--model", "model.safetensors", "--shard", "4"]
    assert main([*args, "--json"]) == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["images"], summary["skipped"], summary["failures"]) == (5, 1, {"bad.png": "is empty"})
    assert err == "samjax: bad.png: is empty\n"
    assert main(args) == 1
    assert "5 images, 1 failure, 1 skipped, 5 done before" in capsys.readouterr().out
    np.testing.assert_allclose(Embeddings("out")["0.png"].features, sam.encode("photos/0.png").features[0], atol=2e-3,
                               rtol=1e-3)
