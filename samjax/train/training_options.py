"""What a training by a recipe is asked to do, and the recipe that follows. No JAX here: a wrong option is answered at
once."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from samjax.config import LITE_MEDSAM, VIT_B, VIT_H, VIT_L, VIT_T, SamConfig, ViT, from_dict
from samjax.errors import InputError
from samjax.train import recipe as recipes
from samjax.train.options import require
from samjax.train.recipe import Recipe

MODELS = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H, "mobile_sam": VIT_T, "lite_medsam": LITE_MEDSAM}
PAPER = ("vit_b", "vit_l", "vit_h")  # models that have a recipe of their own
REMATS = {"none": False, "products": "products", "blocks": True}
DEEP = 24  # blocks of a ViT from which memory is worth more than the time to compute anew


@dataclass(frozen=True)
class TrainingOptions:
    """See `samjax train --help`, whose options these are; 0 or "" where the model or the preset decides."""

    data: Sequence[str]
    out: str
    model: str = ""
    init: str = ""
    encoder: str = ""
    recipe: str = ""
    batch: int = 0
    steps: int = 0
    objects: int = 0
    accumulate: int = 0
    lr: float = 0.0
    settings: Sequence[str] = ()
    image_size: int = 0
    dtype: str = "bfloat16"
    val: Sequence[str] = ()
    val_objects: int = 1000
    images: str = ""
    masks: str = "auto"
    balance: float = 1.0
    evaluate_every: int = 2000
    save_every: int = 500
    keep: int = 3
    sharding: str = ""
    fsdp: int = 0
    remat: str = ""
    workers: int = 0
    seed: int = 0

    def check(self) -> "TrainingOptions":
        """Raises InputError for what makes no sense; returns itself."""
        counts = ("batch", "steps", "objects", "accumulate", "lr", "image_size", "evaluate_every", "fsdp", "workers",
                  "seed")
        require(self, counts, lambda value: 0 <= value < float("inf"), "be a number from 0 on")
        require(self, ("val_objects", "save_every", "keep"), lambda value: value >= 1, "be 1 or more")
        require(self, ("balance",), lambda value: 0 <= value <= 1, "be from 0 to 1")
        if self.init and (self.model or self.encoder):
            raise InputError(f"--init {self.init} brings its own architecture and encoder: leave out --model and "
                             "--encoder, or --init")
        if self.fsdp and self.sharding != "fsdp":
            raise InputError("--fsdp is how many devices hold a state together: it needs --sharding fsdp")
        return self

    def identity(self) -> dict:
        """What beside model and recipe must not change when a run is taken up again; JSON-able. What only conducts it
        is left out."""
        values = {name: getattr(self, name) for name in ("masks", "balance", "dtype", "seed", "val_objects")}
        values["images"] = os.path.abspath(self.images) if self.images else ""
        return values | {name: [os.path.abspath(path) for path in getattr(self, name)] for name in ("data", "val")}


def config_of(options: TrainingOptions) -> SamConfig:
    """The architecture that --model names, or that a .json describes as a model's samjax.json does. Raises
    InputError."""
    name = options.model or "vit_b"
    if name in MODELS:
        return MODELS[name]
    try:
        with open(name) as file:
            values = json.load(file)
        return from_dict(values.get("config", values))
    except FileNotFoundError:
        raise InputError(f"--model {name}: none of {', '.join(MODELS)}, and no such file (to go on from a model's "
                         "weights: --init)") from None
    except OSError as error:
        raise InputError(f"--model {name}: cannot be read as a model's description ({error.strerror}); to go on from a "
                         "model's weights: --init") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"--model {name}: describes no model: {str(error).splitlines()[0]}") from None


def recipe_of(options: TrainingOptions, model: str) -> Recipe:
    """The recipe: the preset that --recipe or else the model's name means (vit_b where there is none of it), with what
    is set on the command line.

    Where only the number of steps is given, the drops of the rate keep their share of it, and the warm-up is at most a
    fifth. Raises InputError.
    """
    preset = options.recipe or (model if model in PAPER else "vit_b")
    usual = recipes.preset(preset)
    given = {name: getattr(options, name) for name in ("batch", "steps", "objects", "accumulate", "lr")
             if getattr(options, name)}
    for text in options.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write NAME=VALUE, such as drop_path=0.1")
        if name.strip() == "preset":
            raise InputError(f"--set {text}: give --recipe {value.strip()}")
        given[name.strip()] = _value(value.strip())
    steps = given.get("steps", usual.steps)
    if isinstance(steps, int) and steps != usual.steps:
        given.setdefault("drops", [round(drop * steps / usual.steps) for drop in usual.drops])
        given.setdefault("warmup", min(usual.warmup, max(steps // 5, 1)))
    return recipes.from_dict({"preset": preset} | given)


def remat_of(options: TrainingOptions, config: SamConfig) -> bool | str:
    """What of the encoder is computed anew in the backward pass; see config.ViT."""
    if options.remat:
        remat = REMATS[options.remat]
        if remat == "products" and not isinstance(config.encoder, ViT):
            raise InputError("--remat products is for ViTs; a TinyViT has --remat blocks")
        return remat
    return "products" if isinstance(config.encoder, ViT) and config.encoder.depth >= DEEP else False


def _value(text: str):
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return text
