"""`samjax train`: a run from random weights to a model, taken up again, refused where it is another."""

import json
import os
from dataclasses import replace

import numpy as np
import pretrained
import pytest
import training_runs
from training_runs import SMALL, words

import convert
from convert.pretrained import read_pretrained
from samjax.cli import main, parser
from samjax.config import VIT_B, VIT_H, VIT_T, to_dict
from samjax.train import loop, start
from samjax.train.metrics import read
from samjax.train.recipe import preset
from samjax.train.training_options import TrainingOptions, recipe_of
from samjax.weights import resolve


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, val/, init/ and run/, the result of six steps."""
    place = training_runs.prepare(tmp_path_factory.mktemp("place"))
    assert main(words(place, "run")) == 0
    return place


def tensors(path):
    return {name: tensor.load() for name, tensor in convert.read(resolve(str(path))).tensors.items()}


def test_the_run(place):
    report = json.loads((place / "run" / "report.json").read_text())
    assert report["steps"] == 6 and report["devices"] == 1 and set(report["scores"]) == {"0", "3", "6"}
    steps, evaluations = read(place / "run" / "metrics.jsonl")
    assert [line["step"] for line in steps] == [*range(1, 7)] and len(evaluations) == 3
    assert all(np.isfinite(line["loss"]) for line in steps)
    assert report["recipe"]["drops"] == [4, 6] and report["recipe"]["warmup"] == 1  # at the shares of vit_b's


def test_the_result_is_a_model(place):
    """As files hold it, whatever the training made of it."""
    model = convert.read(resolve(str(place / "run")))
    assert model.config == convert.stored_form(SMALL) and not model.config.encoder.scan
    best = json.loads((place / "run" / "report.json").read_text())["best_step"]
    before, after = tensors(place / "init"), tensors(place / "run")
    changed = {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == ({"image_encoder", "prompt_encoder", "mask_decoder"} if best else set())


def test_done_is_done_and_another_is_refused(place, capsys):
    written = (place / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert main(words(place, "run")) == 0
    assert "is done already" in capsys.readouterr().out
    assert main(words(place, "run", "--lr", "0.1")) == 2
    assert "lr was 0.0008, now 0.1" in capsys.readouterr().err
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "notes.txt").write_text("mine")
    assert main(words(place, "mine", "--restart")) == 2
    assert "holds other files, such as notes.txt" in capsys.readouterr().err
    assert (place / "run" / "metrics.jsonl").stat().st_mtime_ns == written


@pytest.mark.skipif(not os.environ.get("SAMJAX_THOROUGH"), reason="SAMJAX_THOROUGH=1 asks for it")
@pytest.mark.slow
def test_without_anything_to_validate_on_the_last_model_is_kept(place, monkeypatch):
    """Of a run that was broken off, before its fifth step, and taken up: its losses are those of the unbroken one."""
    one_step = loop._Run.step

    def broken(self, batch):
        if self.k == 4:
            raise KeyboardInterrupt
        return one_step(self, batch)

    monkeypatch.setattr(loop._Run, "step", broken)
    assert main(words(place, "broken", val=False)) == 130
    assert not (place / "broken" / "model").exists()
    done = []
    monkeypatch.setattr(loop._Run, "step", lambda self, batch: (done.append(self.k), one_step(self, batch))[1])
    assert main(words(place, "broken", val=False)) == 0
    assert done == [4, 5]
    once, twice = (read(place / out / "metrics.jsonl")[0] for out in ("run", "broken"))
    assert [line["loss"] for line in once] == [line["loss"] for line in twice]
    before, after = tensors(place / "init"), tensors(place / "broken")
    assert set(before) == set(after)
    changed = {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"image_encoder", "prompt_encoder", "mask_decoder"}
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert "prompt_encoder/gaussian" in same
    report = json.loads((place / "broken" / "report.json").read_text())
    assert report["best_step"] is None and report["scores"] == {}


@pytest.mark.parametrize("wrong, message", [
    (["--image-size", "100"], "--image-size 100: it must be a multiple of 16"),
    (["--batch", "9", "--sharding", "data"], "a batch of 9 cannot be shared by 8 devices"),
    (["--accumulate", "3"], "the batch"),
    (["--accumulate", "2", "--sharding", "data"], "a device's share of a batch, 1, cannot be taken in 2 parts"),
    (["--sharding", "fsdp", "--fsdp", "3"], "8 devices cannot form groups of so many"),
    (["--set", "decoder_depth=3"], "--set decoder_depth=0 keeps it"),
    (["--set", "preset=vit_h"], "give --recipe vit_h"),
    (["--set", "train=lora"], "samjax finetune --train lora"),
    (["--set", "drop_paths=0"], "did you mean 'drop_path'?"),
    (["--set", "drop_path"], "write NAME=VALUE"),
    (["--fsdp", "2"], "it needs --sharding fsdp"),
    (["--model", "vit_b"], "brings its own architecture"),
    (["--images", "nowhere"], "--images nowhere: no such folder"),
    (["--lr", "nan"], "--lr nan: it must be a number from 0 on"),
    (["--processes", "2", "--process", "0"], "give --coordinator HOST:PORT too"),
    (["--init", "OUT/model"], "lies in --out"),
])
def test_a_mistake_costs_nothing(place, capsys, wrong, message):
    """Not even with --restart; and a fresh folder is left to the command that is right."""
    wrong = [word.replace("OUT", str(place / "run")) for word in wrong]
    for out in ("run", "fresh") if "lies in" not in message else ("run",):
        held = sorted((place / out).rglob("*"))
        assert main(words(place, out, "--restart", *wrong)) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
        assert sorted((place / out).rglob("*")) == held


def test_nothing_to_validate_on(place, capsys):
    """Is said before the first step; scores of 0 would keep the model as it was."""
    training_runs.empty(place / "none")
    assert main(words(place, "unjudged", "--val", str(place / "none"), val=False)) == 2
    assert "there is no object to validate on" in capsys.readouterr().err


@pytest.mark.parametrize("words, change", [
    (["--model", "vit_b"], {}),
    (["--model", "vit_b", "--steps", "1800"], {"steps": 1800, "drops": (1200, 1733), "warmup": 250}),
    (["--model", "vit_h", "--batch", "64", "--accumulate", "4"], {"batch": 64, "accumulate": 4}),
    (["--set", "jitter=[0.1, 2]", "--set", "schedule=cosine", "--set", "drop_path=.5"],
     {"jitter": (0.1, 2), "schedule": "cosine", "drop_path": 0.5}),
    (["--recipe", "finetune", "--init", "vit_b", "--steps", "50"], {"steps": 50, "warmup": 10}),
])
def test_recipes(words, change):
    """The paper's for the model, with what is set."""
    args = parser().parse_args(["train", "DATA", "--out", "OUT", *words])
    options = TrainingOptions(**{name: getattr(args, name) for name in TrainingOptions.__dataclass_fields__})
    name = args.recipe or args.model or "vit_b"
    assert recipe_of(options, args.model or "custom") == replace(preset(name), **change)
    assert recipe_of(TrainingOptions(data=[], out=""), "finetune") == preset("vit_b")  # a model of that name


def test_memory_is_saved_in_deep_models():
    options = TrainingOptions(data=[], out="")
    assert start.trained_config(options, VIT_H).encoder == replace(VIT_H.encoder, scan=True, remat="products")
    assert start.trained_config(options, VIT_B).encoder == replace(VIT_B.encoder, scan=True)
    assert start.trained_config(options, VIT_T) == replace(VIT_T, dtype="bfloat16")


def test_on_from_a_model(place):
    """Its numbers are where the run begins, stacked."""
    described = start.describe(TrainingOptions(data=[], out="", init=str(place / "init")))
    params = start.begin(described, 0)
    assert "groups" in params["image_encoder"]
    stored, held = start.stored(described.config, params), tensors(place / "init")
    assert set(stored) == set(held) and all(np.array_equal(stored[name], held[name]) for name in held)


@pytest.mark.slow
def test_from_nothing(tmp_path):
    """A model that a .json describes, for smaller pictures and with the recipe's deeper decoder; a pretrained ViT gives
    it all that it has, and its positions on a grid of another size."""
    trained = replace(SMALL, dtype="bfloat16", encoder=replace(SMALL.encoder, remat=True, drop_path=0.5))
    (tmp_path / "small.json").write_text(json.dumps(to_dict(trained)))  # what belongs to a training is left out
    y, x = np.mgrid[:3, :3]
    slope = np.repeat((10.0 * y + x)[..., None], 16, axis=2).reshape(1, 9, 16).astype(np.float32)
    finer = np.ones((16, 3, 14, 14), np.float32)
    pretrained.write(tmp_path / "vit.pth", SMALL, grid=3, pos_embed=slope, **{"patch_embed.proj.weight": finer})
    described = start.describe(TrainingOptions(data=[], out="", model=str(tmp_path / "small.json"), image_size=96,
                                               encoder=str(tmp_path / "vit.pth")))
    described = start.deepened(described, replace(preset("vit_b"), decoder_depth=2))
    assert described.config == replace(SMALL, decoder=replace(SMALL.decoder, depth=2), image_size=(96, 96))
    stored = start.stored(described.config, start.begin(described, 0))
    assert {path: array.shape for path, array in stored.items()} == {
        row.path: row.shape for row in convert.rows(described.config)}
    positions = stored.pop("image_encoder/pos_embed")
    assert positions.shape == (6, 6, 16)  # twice as fine; in the middle the same slope, down ten times that across
    np.testing.assert_allclose(np.diff(positions[:, 3, 0])[2], 5, atol=1)
    np.testing.assert_allclose(np.diff(positions[3, :, 0])[2], 0.5, atol=0.1)
    np.testing.assert_allclose(stored.pop("image_encoder/patch_embed/kernel"), np.ones((16, 16, 3, 16)), atol=1e-6)
    for path, array in read_pretrained(tmp_path / "vit.pth", SMALL).items():
        if path in stored:
            np.testing.assert_array_equal(stored[path], array)
    kernel = stored["image_encoder/neck/conv1/kernel"]
    assert 0 < kernel.std() < 1
    assert not stored["image_encoder/blocks_0/attn/rel_pos_h"].any()
