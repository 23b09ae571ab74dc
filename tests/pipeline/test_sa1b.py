"""SA-1B as a folder and in tar shards."""

import os
import pickle
import shutil

import numpy as np
import pytest
from made import members, sa1b_folder, sa1b_tar

from samjax.data import open_source
from samjax.data.index import open_index
from samjax.data.sa1b import Sa1bTar
from samjax.errors import InputError
from samjax.image import read_image


@pytest.fixture
def made():
    return members(pictures=3)


def assert_holds(source, made, folder):
    assert len(source) == len(made)
    for index, (stem, _, masks) in sorted(enumerate(made), key=lambda _: -1):
        record = source[index]
        assert record.name == source.item_name(index) == f"{stem}.jpg"
        assert np.array_equal(record.image, read_image(folder / f"{stem}.jpg"))
        assert all(np.array_equal(found.mask(), mask) for found, mask in zip(record.objects, masks, strict=True))


def test_folder_and_tar_hold_the_same(tmp_path, made):
    folder = sa1b_folder(tmp_path / "data", made)
    assert_holds(open_source(folder), made, folder)
    shard = sa1b_tar(tmp_path / "sa.tar", made)
    source = open_source(shard)
    for reopened in (source, open_source(shard), pickle.loads(pickle.dumps(source))):
        assert_holds(reopened, made, folder)
    assert len(pickle.dumps(source)) < 1000  # workers get a path, not the data


def test_the_index_is_built_once(tmp_path, made, monkeypatch):
    shard = sa1b_tar(tmp_path / "sa.tar", made)
    source = open_source(shard)
    kept, = tmp_path.glob(".sa.tar-*")
    monkeypatch.setattr("samjax.data.sa1b.read_headers", lambda path: 1 / 0)
    assert open_source(shard).names() == source.names()
    monkeypatch.undo()
    sa1b_tar(shard, members(seed=1, pictures=5))
    assert len(open_source(shard)) == 5  # another file: another index
    assert kept.is_dir()


def test_the_index_goes_to_the_cache_where_the_folder_is_read_only(tmp_path, made, monkeypatch):
    shard = sa1b_tar(tmp_path / "sa.tar", made)
    monkeypatch.setenv("SAMJAX_CACHE", os.fspath(tmp_path / "other"))
    real = os.rename

    def rename(source, target):
        if os.path.dirname(target) == os.fspath(tmp_path):
            raise PermissionError(13, "read-only")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert len(open_source(shard)) == 3
    assert len(list((tmp_path / "other" / "index").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "sa.tar"]  # nothing half-made stays
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(InputError, match="set SAMJAX_CACHE"):
        open_source(shard)


def test_two_processes_may_build_the_same_index(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1")

    def build(path):
        inner = open_index(path, lambda _: {"a": np.arange(3)})  # another process gets there first
        assert inner["a"].tolist() == [0, 1, 2]
        return {"a": np.arange(3)}

    assert open_index(path, build)["a"].tolist() == [0, 1, 2]
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1


def test_a_folder_of_shards_and_a_pattern(tmp_path):
    for k in range(3):
        sa1b_tar(tmp_path / f"sa_{k}.tar", [(f"{k}_{stem}", *rest) for stem, *rest in members(k, 2)])
    whole = open_source(tmp_path)
    assert len(whole) == 6 and whole[5].name == "2_sa_1.jpg" == whole.item_name(5)
    assert open_source(f"{tmp_path}/sa_[01].tar").names() == whole.names()[:4]
    assert isinstance(open_source([tmp_path / "sa_2.tar"]), Sa1bTar)


def test_files_without_partner_are_named(tmp_path, made):
    folder = sa1b_folder(tmp_path / "data", made)
    (folder / "sa_0.json").unlink()
    (folder / "sa_1.jpg").unlink()
    source = open_source(folder)
    assert source.names() == ["sa_2.jpg"]
    assert source.found == [("sa_0.jpg", "has no .json of its name: no masks"),
                            ("sa_1.json", "has no picture of its name")]


@pytest.mark.parametrize("text, message", [
    (b"{", "broken JSON"), (b"[]", "not as SA-1B has it"), (b'{"annotations": [{"area": 3}]}', "not as SA-1B has it"),
    (b'{"annotations": [{"segmentation": {"size": [1], "counts": ""}}]}', "not as SA-1B has it"),
    (b"\xff\xfe", "broken JSON")])
def test_broken_json(tmp_path, made, text, message):
    folder = sa1b_folder(tmp_path / "data", made)
    (folder / "sa_1.json").write_bytes(text)
    with pytest.raises(InputError, match=f"sa_1.json is {message}"):
        open_source(folder)[1]


def test_tars_that_cannot_be_used(tmp_path, made):
    shard = sa1b_tar(tmp_path / "sa.tar.gz", made, "w:gz")
    with pytest.raises(InputError, match="compressed"):
        open_source(shard)
    with pytest.raises(InputError, match="uncompressed tar"):
        open_source(shard.rename(tmp_path / "gz.tar"))
    with pytest.raises(InputError, match="no pairs"):
        open_source(sa1b_tar(tmp_path / "empty.tar", []))
    shard = sa1b_tar(tmp_path / "sa.tar", made)
    source = open_source(shard)
    os.truncate(shard, 1500)
    with pytest.raises(InputError, match="cut off"):
        source[2].open()
    with pytest.raises(InputError):
        open_source(shard)
    shard.unlink()
    with pytest.raises(InputError, match="No such file"):
        source[0]
