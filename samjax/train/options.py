"""What a fine-tuning is asked to do, and the recipe that follows. No JAX here: a wrong option is answered at once."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samjax.errors import InputError
from samjax.train.recipe import FINETUNE, Recipe

PARTS = ("decoder", "lora", "all")
RATES = {"decoder": 3e-4, "lora": 3e-4, "all": 1e-4}
BOXES = {"both": 0.5, "point": 0.0, "box": 1.0}
AUGMENTS = ("none", "flip", "jitter", "strong")
FEWEST, MOST = 200, 2000  # steps, where nothing says how many
VERSION = 3  # of what defaults and scores mean: a run is not taken up by another
ENDLESS = 100_000  # steps that a run bounded by minutes may have


@dataclass(frozen=True)
class Options:
    """See `samjax finetune --help`, whose options these are; 0 or "" where the data or the recipe decide."""

    data: Sequence[str]
    init: str
    out: str
    val: Sequence[str] = ()
    mix: Sequence[str] = ()
    mix_share: float = 0.25
    balance: float = 1.0
    embeddings: str = ""
    images: str = ""
    masks: str = "auto"
    train: str = "decoder"
    lora_rank: int = 8
    prompts: str = "both"
    augment: str = "none"
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    lr: float = 0.0
    batch: int = 0
    objects: int = 0
    rounds: int = 0
    mask_size: int = 0
    keep: float = 0.0
    blend: float = 0.0
    average: float = 0.99
    patience: int = 6
    evaluate_every: int = 0
    val_objects: int = 150
    score_objects: int = 600
    sharding: str = "one"
    workers: int = 0
    seed: int = 0

    def check(self) -> "Options":
        """Raises InputError for what makes no sense; returns itself."""
        for name, choices in (("train", PARTS), ("prompts", tuple(BOXES)), ("augment", AUGMENTS)):
            if getattr(self, name) not in choices:
                raise InputError(f"--{name} {getattr(self, name)}: it must be one of {', '.join(choices)}")
        counts = ("steps", "epochs", "minutes", "lr", "batch", "objects", "rounds", "mask_size", "keep", "patience",
                  "evaluate_every", "workers", "seed")
        require(self, counts, lambda value: 0 <= value < float("inf"), "not be below 0")
        require(self, ("lora_rank", "val_objects", "score_objects"), lambda value: value >= 1, "be 1 or more")
        require(self, ("average",), lambda value: 0 <= value < 1, "be at least 0 and below 1")
        require(self, ("blend", "balance"), lambda value: 0 <= value <= 1, "be from 0 to 1")
        require(self, ("mix_share",), lambda value: 0 < value < 1, "be above 0 and below 1")
        if self.steps and self.epochs:
            raise InputError("give --steps or --epochs, not both")
        return self

    @property
    def frozen_encoder(self) -> bool:
        return self.train == "decoder"

    @property
    def cached(self) -> bool:
        """Whether training runs on embeddings that are made once."""
        return self.frozen_encoder and self.augment == "none"

    def identity(self) -> dict:
        """All that must not change when a run is taken up again; JSON-able. What only conducts it is left out."""
        values = dataclasses.asdict(self)
        for name in ("out", "embeddings", "workers", "minutes", "sharding"):
            del values[name]
        paths = {name: [os.path.abspath(path) for path in values[name]] for name in ("data", "val", "mix")}
        if os.path.exists(self.init):
            values["init"] = os.path.abspath(self.init)
        return values | paths | {"bounded": self.minutes > 0, "version": VERSION}


def require(options, names: Sequence[str], holds: Callable[[float], bool], what: str) -> None:
    """Raises InputError that names the first option whose value must be otherwise."""
    for name in names:
        value = getattr(options, name)
        if not holds(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: it must {what}")


def make_recipe(options: Options, pictures: int, devices: int = 1) -> Recipe:
    """The recipe of a fine-tuning on so many pictures; its batch is a multiple of the devices.

    Raises InputError for a --batch that is none.
    """
    given = {name: getattr(options, name) for name in ("batch", "objects") if getattr(options, name)}
    if options.rounds:
        given |= {"points": options.rounds}
    if options.train != "decoder":
        given = {"batch": 2} | given
    recipe = replace(FINETUNE, **given, train={"decoder": "decoder", "lora": "lora+decoder", "all": "everything"}[
        options.train], lora_rank=options.lora_rank, lr=options.lr or RATES[options.train],
        boxes=BOXES[options.prompts])
    if options.train == "lora":  # low-rank factors start from nothing: there is nothing in early layers to protect
        recipe = replace(recipe, layer_decay=1.0)
    if recipe.batch % devices:
        if options.batch:
            raise InputError(f"--batch {options.batch} cannot be shared by {devices} devices: give a multiple of "
                             f"{devices}, or --sharding one")
        recipe = replace(recipe, batch=-(-recipe.batch // devices) * devices)
    epoch = -(-pictures // recipe.batch)
    if options.steps or options.epochs:
        steps = options.steps or max(1, round(options.epochs * pictures / recipe.batch))
    else:
        steps = ENDLESS if options.minutes else min(max(30 * epoch, FEWEST), MOST)
    return replace(recipe, steps=steps, warmup=min(recipe.warmup, max(steps // 5, 1)))
