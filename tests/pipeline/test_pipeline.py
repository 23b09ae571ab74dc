"""Batches: the contract, the order, resuming, sharding, mixing, bad pictures."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made import instance_folder
from PIL import Image

pytest.importorskip("grain")

from samjax.data import Augment, make_pipeline, open_source, with_features
from samjax.data.records import Part, Record
from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.geometry import prepare


class Numbered(Source):
    """Pictures that are all of one colour: `first`, `first` + 1, ... Those in `bad` cannot be read."""

    def __init__(self, n, first=0, bad=()):
        self.n, self.first, self.bad, self.name = n, first, set(bad), f"numbers from {first}"

    def __len__(self):
        return self.n

    def item_name(self, index):
        return f"{self.first + index}.png"

    def record(self, index):
        if index in self.bad:
            raise InputError("is damaged")
        colour = self.first + index
        mask = np.zeros((64, 64), bool)
        mask[:16, :16] = True
        return Record(self.item_name(index), lambda longest=None: Image.new("RGB", (64, 64), (colour,) * 3),
                      [Part((64, 64), mask)])


def numbers(batch):
    """Which pictures a batch holds; None for a blank one."""
    return [int(image[0, 0, 0]) if valid.any() else None for image, valid in zip(batch["image"], batch["valid"])]


def take(pipeline, n=None, state=None):
    """The first n batches (None: all) and the iterator's states after each."""
    batches, states = [], []
    with contextlib.closing(iter(pipeline)) as iterator:
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        while n is None or len(batches) < n:
            try:
                batches.append(next(iterator))
            except StopIteration:
                break
            states.append(iterator.get_state())
    return batches, states


def drawn(pipeline, n=None):
    return [numbers(batch) for batch in take(pipeline, n)[0]]


def same(a, b):
    return len(a) == len(b) and all(set(x) == set(y) and all(
        x[key].dtype == y[key].dtype and np.array_equal(x[key], y[key]) for key in x) for x, y in zip(a, b))


def test_contract(tmp_path, config):
    source = open_source(instance_folder(tmp_path / "data"))
    (batch,), _ = take(make_pipeline([source], config, batch=4, objects=6, mask_size=32, shuffle=False, repeat=False))
    assert {key: (value.dtype, value.shape, type(value)) for key, value in batch.items()} == {
        "image": (np.uint8, (4, 64, 64, 3), np.ndarray), "size": (np.int32, (4, 2), np.ndarray),
        "masks": (bool, (4, 6, 32, 32), np.ndarray), "valid": (bool, (4, 6), np.ndarray)}
    for k, record in enumerate(source):
        image, size = prepare(record.image, config)
        assert np.array_equal(batch["image"][k], image) and tuple(batch["size"][k]) == size
        assert batch["valid"][k].sum() == len(record.objects)


def test_once_in_order_with_a_blank_end(config):
    batches = drawn(make_pipeline([Numbered(4, 1), Numbered(3, 50)], config, batch=3, shuffle=False, repeat=False))
    assert batches == [[1, 2, 3], [4, 50, 51], [52, None, None]]
    batches = drawn(make_pipeline([Numbered(7)], config, batch=3, shuffle=False, repeat=False, drop_remainder=True))
    assert batches == [[0, 1, 2], [3, 4, 5]]
    (batch,), _ = take(make_pipeline([Numbered(1)], config, batch=3, repeat=False))
    assert not batch["image"][1:].any() and not batch["masks"][1:].any() and (batch["size"][1:] == 64).all()


def test_epochs_are_complete_and_differ(config):
    pipeline = make_pipeline([Numbered(10), Numbered(10, 10)], config, batch=5, seed=1)
    order = [n for batch in drawn(pipeline, 12) for n in batch]
    epochs = [order[k:k + 20] for k in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == [n for batch in drawn(pipeline, 12) for n in batch]
    assert order != [n for b in drawn(make_pipeline([Numbered(20)], config, batch=5, seed=2), 12) for n in b]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"repeat": False}, {"repeat": False, "drop_remainder": True}])
def test_processes_share_the_global_batch(config, count, options):
    """Side by side, the processes' batches are the batches of one process."""
    whole = drawn(make_pipeline([Numbered(21)], config, batch=4, seed=3, **options), 4)
    parts = [drawn(make_pipeline([Numbered(21)], config, batch=4 // count, seed=3, process_index=k, process_count=count,
                                 **options), 4) for k in range(count)]
    assert len({len(part) for part in parts}) == 1
    assert [sum(rows, []) for rows in zip(*parts)][:len(whole)] == whole
    if options == {"repeat": False}:
        everything = [n for part in parts for batch in part for n in batch if n is not None]
        assert len(everything) == len(set(everything)) == 16 if len(whole) == 4 else 21


def test_every_picture_once_over_all_processes(config):
    for n in (1, 5, 12, 23):
        seen = Counter()
        for k in range(3):
            batches = drawn(make_pipeline([Numbered(n)], config, batch=2, repeat=False, process_index=k,
                                          process_count=3))
            assert len(batches) == -(-n // 6)
            seen.update(number for batch in batches for number in batch)
        assert {number: times for number, times in seen.items() if number is not None} == dict.fromkeys(range(n), 1)


def test_weights(config):
    sources = [Numbered(5), Numbered(40, 100), Numbered(3, 200)]
    pipeline = make_pipeline(sources, config, batch=10, weights=[1, 2, 5], objects=1)
    order = [n for batch in drawn(pipeline, 8) for n in batch]
    counts = Counter(n // 100 for n in order)
    assert [counts[k] for k in range(3)] == [10, 20, 50]
    assert all(abs(sum(n >= 200 for n in order[:k]) - 5 / 8 * k) < 2 for k in range(80))  # evenly all along
    assert sorted(n for n in order if n < 100) == sorted(list(range(5)) * 2)  # each set runs through its epochs


def test_resume_at_the_end(config):
    pipeline = make_pipeline([Numbered(7)], config, batch=3, shuffle=False, repeat=False)
    _, states = take(pipeline)
    assert states[-1] == {"batch": 3} and take(pipeline, None, states[-1]) == ([], [])
    assert [numbers(batch) for batch in take(pipeline, None, states[-2])[0]] == [[6, None, None]]


@pytest.mark.parametrize("augment", [None, Augment(0.5, (0.1, 2.0))])
def test_resume_is_exact(tmp_path, config, augment):
    source = open_source(instance_folder(tmp_path / "data", pictures=7, objects=9))
    pipeline = make_pipeline([source], config, batch=3, objects=4, seed=5, augment=augment)
    whole, states = take(pipeline, 8)
    for k in (0, 3, 6):
        again, after = take(pipeline, 8 - k - 1, states[k])
        assert same(again, whole[k + 1:]) and after == states[k + 1:]
    iterator = iter(pipeline)
    first = next(iterator)
    next(iterator)
    iterator.set_state({"batch": 0})
    assert same([next(iterator)], [first])
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


def test_workers_change_nothing(tmp_path, config):
    """Neither their number nor a restart with another one."""
    source = open_source(instance_folder(tmp_path / "data", pictures=7, objects=9))
    make = lambda workers: make_pipeline([source], config, batch=3, objects=4, seed=5, workers=workers,
                                         augment=Augment(0.5, (0.1, 2.0)))
    whole, states = take(make(0), 7)
    batches, found = take(make(2), 5)
    assert same(batches, whole[:5]) and found == states[:5]
    assert all(type(value) is np.ndarray for batch in batches for value in batch.values())
    again, _ = take(make(1), 2, states[4])
    assert same(again, whole[5:])


def test_a_process_ends_quietly(tmp_path):
    """With an iterator that nobody closed, and a batch still in hand."""
    instance_folder(tmp_path / "data")
    script = tmp_path / "script.py"
    script.write_text(f"""
from samjax.config import Decoder, SamConfig, ViT
from samjax.data import make_pipeline, open_source

config = SamConfig("custom", ViT(width=32, depth=1, heads=2), Decoder(mlp=64), channels=32, image_size=(64, 64))
if __name__ == "__main__":
    batches = iter(make_pipeline([open_source({str(tmp_path / 'data')!r})], config, batch=2, workers=1))
    kept = [next(batches) for _ in range(2)]
    print(len(kept))
""")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=Path(__file__).parents[2],
                           env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2\n", "")


def test_orbax_keeps_the_position(tmp_path, config):
    import grain
    import orbax.checkpoint as ocp

    pipeline = make_pipeline([Numbered(9)], config, batch=2, seed=1)
    with contextlib.closing(iter(pipeline)) as iterator:
        next(iterator)
        with ocp.CheckpointManager(tmp_path / "ck") as manager:
            manager.save(1, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
            manager.wait_until_finished()
            want = numbers(next(iterator))
            with contextlib.closing(iter(pipeline)) as other:
                manager.restore(1, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
                assert numbers(next(other)) == want


def test_few_bad_pictures_are_passed_over(config):
    said = []
    source = Numbered(40, bad=[7])
    pipeline = make_pipeline([source], config, batch=10, report=said.append)
    order = [n for batch in drawn(pipeline, 12) for n in batch]
    assert None not in order and 7 not in order and said == ["7.png: is damaged; passed over"]
    assert order == [n for batch in drawn(pipeline, 12) for n in batch]  # what stands in follows from the seed as well
    batches = drawn(make_pipeline([source], config, batch=10, shuffle=False, repeat=False, report=said.append))
    assert batches[0] == [0, 1, 2, 3, 4, 5, 6, None, 8, 9]


def test_many_bad_pictures_are_an_error(config):
    pipeline = make_pipeline([Numbered(40, bad=range(0, 40, 3))], config, batch=10, report=lambda message: None)
    with pytest.raises(InputError, match="pictures cannot be used.*is damaged; check the data"):
        take(pipeline, 20)
    take(make_pipeline([Numbered(40, bad=[1, 2, 3])], config, batch=10, report=lambda message: None), 20)
    nothing = make_pipeline([Numbered(4, bad=range(4))], config, batch=4, report=lambda message: None)
    with pytest.raises(InputError, match="cannot be used"):
        take(nothing, 20)


def test_reports_go_to_stderr(config, capsys):
    take(make_pipeline([Numbered(20, bad=[3])], config, batch=20, repeat=False), 1)
    assert capsys.readouterr() == ("", "3.png: is damaged; passed over\n")


class Reader:
    """Embeddings by name: all values are the picture's number."""

    def __getitem__(self, name):
        return np.full((4, 4, 32), int(name.split(".")[0]), np.float32), (64, 64)


def test_cached_embeddings(config):
    source = with_features(Numbered(6, bad=[2]), Reader())
    (batch,), _ = take(make_pipeline([source], config, batch=8, shuffle=False, repeat=False, report=lambda m: None))
    assert set(batch) == {"features", "size", "masks", "valid"}
    assert batch["features"].shape == (8, 4, 4, 32) and batch["features"].dtype == np.float32
    assert batch["features"][:, 0, 0, 0].tolist() == [0, 1, 0, 3, 4, 5, 0, 0]
    assert batch["valid"][:, 0].tolist() == [True, True, False, True, True, True, False, False]


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_and_embeddings(config, workers):
    """Both of each, as distillation needs them; with masks or, with objects=0, whatever masks there are."""
    source = with_features(Numbered(6, bad=[2]), Reader())
    make = lambda **options: take(make_pipeline([source], config, batch=8, images=True, shuffle=False, repeat=False,
                                                report=lambda m: None, **options))[0][0]
    for objects in (0, 3) if not workers else (0,):
        batch = make(objects=objects, workers=workers)
        assert {key: value.shape for key, value in batch.items()} == {
            "image": (8, 64, 64, 3), "features": (8, 4, 4, 32), "size": (8, 2), "masks": (8, objects, 16, 16),
            "valid": (8, objects)}
        assert batch["masks"].dtype == bool and batch["valid"].dtype == bool
        for values in (batch["image"][:, 0, 0, 0], batch["features"][:, 0, 0, 0]):
            assert values.tolist() == [0, 1, 0, 3, 4, 5, 0, 0]


def test_embeddings_under_other_names(config):
    class Named(dict):
        def __getitem__(self, name):
            return (*Reader()[super().__getitem__(name)], "more", "fields")

    source = with_features(Numbered(2), Named({"folder/0.png": "5.png"}), "folder/{}".format)
    said = []
    (batch,), _ = take(make_pipeline([source], config, batch=2, shuffle=False, repeat=False, report=said.append))
    assert batch["features"][:, 0, 0, 0].tolist() == [5, 0] and batch["valid"][:, 0].tolist() == [True, False]
    assert said == ["1.png: has no cached embedding: make the embeddings again; passed over"]


def test_wrong_settings(config):
    make = lambda sources, **options: make_pipeline(sources, config, batch=2, **options)
    for sources in ([], [Numbered(0)]):
        with pytest.raises(InputError, match="no pictures with masks"):
            make(sources)
    with pytest.raises(InputError, match="either all"):
        make([Numbered(2), with_features(Numbered(2), Reader())])
    with pytest.raises(InputError, match="cannot be augmented"):
        make([with_features(Numbered(2), Reader())], augment=Augment())
    with pytest.raises(InputError, match="multiple of 16"):
        make([Numbered(2)], mask_size=20)
    for weights, repeat in (([1], True), ([1, 0], True), ([1, 2], False)):
        with pytest.raises(ValueError, match="weights"):
            make([Numbered(2), Numbered(2)], weights=weights, repeat=repeat)
    with pytest.raises(ValueError, match="process 2 of 2"):
        make([Numbered(2)], process_index=2, process_count=2)
