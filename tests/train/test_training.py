"""`samjax train`: a run from random weights to a model, taken up again, refused where it is another."""

import json
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
from samjax.errors import InputError
from samjax.train import loop, start
from samjax.train.metrics import read
from samjax.train.recipe import preset
from samjax.train.training_options import TrainingOptions, recipe_of
from samjax.weights import resolve


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/, val/, init/ and run/, the result of six steps on eight devices."""
    place = training_runs.prepare(tmp_path_factory.mktemp("place"))
    assert main(words(place, "run")) == 0
    return place


def tensors(path):
    return {name: tensor.load() for name, tensor in convert.read(resolve(str(path))).tensors.items()}


def test_the_run(place):
    report = json.loads((place / "run" / "report.json").read_text())
    assert report["steps"] == 6 and report["devices"] == 8 and set(report["scores"]) == {"0", "3", "6"}
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
    assert "lr was 0.0, now 0.1" in capsys.readouterr().err
    (place / "mine").mkdir(exist_ok=True)
    (place / "mine" / "notes.txt").write_text("mine")
    assert main(words(place, "mine", "--restart")) == 2
    assert "holds other files, such as notes.txt" in capsys.readouterr().err
    assert (place / "run" / "metrics.jsonl").stat().st_mtime_ns == written


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
    monkeypatch.undo()
    assert main(words(place, "broken", val=False)) == 0
    once, twice = (read(place / out / "metrics.jsonl")[0] for out in ("run", "broken"))
    assert [line["loss"] for line in once] == [line["loss"] for line in twice]
    before, after = tensors(place / "init"), tensors(place / "broken")
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    report = json.loads((place / "broken" / "report.json").read_text())
    assert report["best_step"] is None and report["scores"] == {}


@pytest.mark.parametrize("words, change", [
    (["--model", "vit_b"], {}),
    (["--model", "vit_b", "--steps", "1800"], {"steps": 1800, "drops": (1200, 1733), "warmup": 250}),
    (["--model", "vit_h", "--batch", "64", "--accumulate", "4"], {"batch": 64, "accumulate": 4}),
    (["--set", "jitter=[0.1, 2]", "--set", "schedule=cosine", "--set", "drop_path=0"],
     {"jitter": (0.1, 2), "schedule": "cosine", "drop_path": 0}),
    (["--recipe", "finetune", "--init", "vit_b", "--steps", "50"], {"steps": 50, "warmup": 10}),
])
def test_recipes(words, change):
    """The paper's for the model, with what is set."""
    args = parser().parse_args(["train", "DATA", "--out", "OUT", *words])
    options = TrainingOptions(**{name: getattr(args, name) for name in TrainingOptions.__dataclass_fields__})
    name = args.recipe or args.model or "vit_b"
    assert recipe_of(options, args.model or "custom") == replace(preset(name), **change)


def test_memory_is_saved_in_deep_models():
    options = TrainingOptions(data=[], out="")
    assert start.trained_config(options, VIT_H).encoder == replace(VIT_H.encoder, scan=True, remat="products")
    assert start.trained_config(options, VIT_B).encoder == replace(VIT_B.encoder, scan=True)
    assert start.trained_config(options, VIT_T) == replace(VIT_T, dtype="bfloat16")


def test_on_from_a_model(place):
    """Its numbers are where the run begins, stacked; a decoder of another depth is refused."""
    options = TrainingOptions(data=[], out="", init=str(place / "init"))
    recipe = recipe_of(options, "custom")
    begun = start.begin(options, recipe)
    assert "groups" in begun.params["image_encoder"]
    stored, held = start.stored(begun.config, begun.params), tensors(place / "init")
    assert set(stored) == set(held) and all(np.array_equal(stored[name], held[name]) for name in held)
    with pytest.raises(InputError, match="asks for a decoder of 3 layers, and .* has 1: --set decoder_depth=0"):
        start.begin(options, replace(recipe, decoder_depth=3))


@pytest.mark.slow
def test_from_nothing(tmp_path):
    """A model that a .json describes, for smaller pictures and with the recipe's deeper decoder; a pretrained ViT gives
    it all that it has, and its positions on a grid of another size."""
    (tmp_path / "small.json").write_text(json.dumps(to_dict(SMALL)))
    pretrained.write(tmp_path / "vit.pth", SMALL, grid=3)
    options = TrainingOptions(data=[], out="", model=str(tmp_path / "small.json"), image_size=32,
                              encoder=str(tmp_path / "vit.pth"))
    begun = start.begin(options, replace(recipe_of(options, "custom"), decoder_depth=2))
    assert begun.config == replace(SMALL, decoder=replace(SMALL.decoder, depth=2), image_size=(32, 32))
    stored = start.stored(begun.config, begun.params)
    shapes = {row.path: row.shape for row in convert.rows(begun.config)}
    assert {path: array.shape for path, array in stored.items()} == shapes
    given = read_pretrained(tmp_path / "vit.pth", SMALL)
    for path, array in given.items():
        if path.endswith("pos_embed"):
            assert stored[path].min() >= array.min() - 0.5 and np.ptp(stored[path]) > 0.5  # 3 x 3 seen at 2 x 2
        else:
            np.testing.assert_array_equal(stored[path], array)
    kernel = stored["image_encoder/neck/conv1/kernel"]
    assert 0 < kernel.std() < 1
    assert not stored["image_encoder/blocks_0/attn/rel_pos_h"].any()
