"""The training step: `init_state`, then `make_step(config, recipe)(state, batch)` again and again.

The step is written once, for one device or for many: with an `axis_name` (pmap, shard_map) it sums over that axis;
without one it sees the whole batch (one device, or those of `parallel.mesh_step`, each of which adds up its own
pictures: see `sums.summed`). It gives equal results in all of these, because each image draws from a key of its own, by
its place in the global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.model.quantise import check_trainable
from samjax.model.sam import encode_image
from samjax.predict import normalise
from samjax.train import lora
from samjax.train.losses import Terms
from samjax.train.optim import Rule, finite, make_optimiser, make_schedule, split, trained, unite
from samjax.train.recipe import Recipe
from samjax.train.rounds import Objects, play
from samjax.train.simulate import inside_picture
from samjax.train.sums import summed


@partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "key"], meta_fields=[])
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes or needs; a pytree of arrays.

    step: int32 scalar, the steps done. params: the model's tree, and the branch "lora" beside its three where factors
    are trained. opt_state: of the trained parameters alone. key: uint32 (2,), a PRNG key's data; it never changes.
    """

    step: Array
    params: dict
    opt_state: tuple
    key: Array


def training_config(config: SamConfig, recipe: Recipe) -> SamConfig:
    """The config that the recipe trains: its drop path, dropout and depth of the decoder, which in bfloat16 is `mixed`.

    Parts that are not trained run as they do at inference.
    """
    encoder = recipe.drop_path if recipe.train in ("everything", "encoder") else 0.0
    decoded = recipe.train in ("everything", "decoder", "lora+decoder")
    decoder = replace(config.decoder, dropout=recipe.dropout if decoded else 0.0,
                      depth=recipe.decoder_depth or config.decoder.depth,
                      mixed=decoded and config.dtype == "bfloat16")
    return replace(config, encoder=replace(config.encoder, drop_path=encoder), decoder=decoder)


def init_state(config: SamConfig, recipe: Recipe, params: dict, key: Array, trains: Rule | None = None) -> TrainState:
    """The state before the first step.

    Args:
        params: the model's parameters (float32), from `samjax.init(training_config(config, recipe), key)` or a
            checkpoint. Where the recipe trains LoRA factors and there are none yet, they are added.
        key: a PRNG key (typed or its two words), the source of all randomness of the run.
        trains: which parameters are trained, by path; in place of recipe.train. Give `make_step` the same.

    Raises InputError if nothing is trained, or weights are int8.
    """
    check_trainable(params)
    key = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.asarray(key)
    if recipe.train.startswith("lora") and "lora" not in params:
        seed = jax.random.fold_in(jax.random.wrap_key_data(key), 0x10FA)
        params = params | {"lora": lora.init_lora(params, recipe.lora_rank, recipe.lora_on, seed)}
    chosen, _ = split(params, trains or partial(trained, recipe))
    if not chosen:
        raise InputError("nothing is trained: no parameter fits the rule")
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimiser(config, recipe).init(chosen), key)


def make_step(config: SamConfig, recipe: Recipe, trains: Rule | None = None) -> Callable:
    """The function `step(state, batch, axis_name=None) -> (state, metrics)`: pure, to be jitted by the caller.

    A batch is a dict of arrays: "image" uint8 (b, H, W, c), pictures as `samjax.prepare` makes them, or in its place
    "features" float32 (b, h, w, 256) where the encoder is not trained; "size" int32 (b, 2), the pictures' (h, w) in
    that frame; "masks" bool (b, n, h, w) over the whole frame, h x w a multiple of config.mask_size; "valid" bool
    (b, n), False for padding. With an axis_name, b images on each device.

    Losses are means over the rounds and over the valid objects of the whole batch; an object without a pixel in the
    picture does not count. Metrics (scalars, equal on all devices): loss, focal, dice, iou_loss; iou_first (IoU of
    the most confident mask in the first round), iou_oracle (of the best of its three), iou_last (in the last round);
    objects; grad_norm (before clipping); learning_rate; finite. If loss or gradient is not finite, nothing changes but
    the count of steps. Raises InputError, when it is traced, for a batch of other names or shapes, and where a device's
    share of it cannot be taken in recipe.accumulate equal parts.
    """
    config = training_config(config, recipe)
    optimiser, schedule = make_optimiser(config, recipe), make_schedule(recipe)
    rule = trains or partial(trained, recipe)

    def step(state: TrainState, batch: dict, axis_name: str | None = None) -> tuple[TrainState, dict]:
        check_batch(config, recipe, batch)
        total = lambda tree: lax.psum(tree, axis_name) if axis_name else tree
        chosen, frozen = split(state.params, rule)
        batch = batch | {"valid": countable(config, batch), "keys": image_keys(state, len(batch["valid"]), axis_name)}
        count = jnp.maximum(total(batch["valid"].sum(dtype=jnp.float32)), 1.0)

        def sums_of(given, batch: dict):
            *params, scale = given
            return in_parts(lambda part: _gradients(config, recipe, *params, part, scale), recipe.accumulate, batch)

        gradients, sums = total(summed(sums_of)((chosen, frozen, 1.0 / (count * recipe.rounds)), batch))
        metrics = _metrics(sums, count) | {"learning_rate": schedule(state.step)}
        return advance(optimiser, state, chosen, frozen, gradients, metrics)

    return step


def advance(optimiser, state: TrainState, chosen: dict, frozen: dict, gradients: dict,
            metrics: dict) -> tuple[TrainState, dict]:
    """The state after one more step, chosen (the trained parameters) moved, and metrics with grad_norm and finite.

    If the loss or the gradient is not finite, nothing changes but the count of steps.
    """
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients)))
    good = finite(metrics["loss"], norm)
    updates, opt_state = optimiser.update(gradients, state.opt_state, chosen, step=state.step)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    chosen = keep(jax.tree.map(jnp.add, chosen, updates), chosen)
    state = TrainState(state.step + 1, unite(chosen, frozen), keep(opt_state, state.opt_state), state.key)
    return state, metrics | {"grad_norm": norm, "finite": good}


def in_parts(one: Callable, parts: int, batch: dict):
    """one(batch), a tree of sums over its images, computed as the sum of so many parts, one after the other.

    Part i holds images i, i + parts, .... Raises InputError if the parts cannot be equal.
    """
    if parts == 1:
        return one(batch)
    if (b := len(jax.tree.leaves(batch)[0])) % parts:
        raise InputError(f"a device's images, {b}, cannot be taken in {parts} equal parts")
    batch = jax.tree.map(lambda x: _interleaved(x, parts), batch)
    first = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batch))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    add = lambda done, part: (jax.tree.map(jnp.add, done, one(part)), None)
    return lax.scan(add, zero, batch)[0]


def _interleaved(x: Array, parts: int) -> Array:
    """(b, ...) -> (parts, b / parts, ...), image j in part j % parts; einops knows no arrays of keys."""
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _gradients(config, recipe, chosen, frozen, batch, scale) -> tuple[dict, Terms]:
    """Gradients like `chosen`, and the sums over the objects, of some images."""
    (tuned, others), (fixed, rest) = _by_stage(chosen), _by_stage(frozen)
    keys = jax.vmap(lambda key: jax.random.split(key))(batch["keys"])
    n = batch["valid"].shape[1]
    object_keys = jax.vmap(lambda key: jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(n)))(keys[:, 1])
    objects = Objects(batch["masks"], batch["valid"], batch["size"], object_keys)

    def features_of(tuned):
        params = lora.join(unite(fixed, tuned))
        return encode(config, params, batch["image"], batch["size"], keys[:, 0])

    if tuned and "image" not in batch:
        raise InputError("a batch of cached features cannot train the image encoder: give images")
    if not tuned:
        features = batch["features"] if "features" in batch else features_of(tuned)
        gradients, sums = play(config, recipe, {"params": others}, rest, features, objects, scale)
        return gradients["params"], sums
    features, pull = jax.vjp(features_of, tuned)
    gradients, sums = play(config, recipe, {"params": others, "features": features}, rest, None, objects, scale)
    return unite(gradients["params"], *pull(gradients["features"])), sums


def encode(config: SamConfig, params: dict, image: Array, size: Array, keys: Array) -> Array:
    """uint8 (b, H, W, c) -> features; where there is drop path, each image draws by its own key."""
    pixels = normalise(config, image, size)
    with lora.active():
        if not config.encoder.drop_path:
            return encode_image(config, params, pixels)
        return jax.vmap(lambda x, key: encode_image(config, params, x[None], key=key)[0])(pixels, keys)


def _by_stage(params: dict) -> tuple[dict, dict]:
    """(what the encoder runs on, what prompts and masks run on), LoRA factors with their kernels."""
    return split(params, lambda path: path.removeprefix("lora/").startswith("image_encoder/"))


def countable(config: SamConfig, batch: dict) -> Array:
    """(b, n) bool: valid objects with at least one cell in the picture."""
    masks = batch["masks"]
    inside = jax.vmap(lambda size: inside_picture(config, masks.shape[2:], size))(batch["size"])
    return batch["valid"] & (masks & inside[:, None]).any((2, 3))


def image_keys(state: TrainState, b: int, axis_name: str | None) -> Array:
    """(b,) keys, by the step and by each image's place in the global batch, b of which are on this device."""
    first = lax.axis_index(axis_name) * b if axis_name else 0
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(b))


def _metrics(sums: Terms, count: Array) -> dict:
    means = jax.tree.map(lambda x: x / count, sums)
    return {"loss": means.loss.mean(), "focal": means.focal.mean(), "dice": means.dice.mean(),
            "iou_loss": means.iou_loss.mean(), "iou_first": means.iou[0], "iou_oracle": means.oracle[0],
            "iou_last": means.iou[-1], "objects": count}


def check_batch(config: SamConfig, recipe: Recipe, batch: dict):
    """Raises InputError if a batch has not the arrays that `make_step` describes."""
    missing = [name for name in ("size", "masks", "valid") if name not in batch]
    if missing or ("image" in batch) == ("features" in batch):
        raise InputError(f"a batch needs size, masks, valid and either image or features; this one has "
                         f"{', '.join(sorted(batch))}")
    b, n = batch["valid"].shape if batch["valid"].ndim == 2 else (0, 0)
    grid = batch["masks"].shape[2:]
    frame = (*config.image_size, config.in_channels), (*config.grid, config.channels)
    wanted = {"image": ((b, *frame[0]), "uint8"), "features": ((b, *frame[1]), "float32"), "size": ((b, 2), "int32"),
              "masks": ((b, n, *grid), "bool"), "valid": ((b, n), "bool")}
    for name in batch:
        if name in wanted and (batch[name].shape, str(batch[name].dtype)) != wanted[name]:
            shape, dtype = wanted[name]
            raise InputError(f"a batch's {name} must be {dtype} {shape}, not {batch[name].dtype} {batch[name].shape}")
    if len(grid) != 2 or any(side % least or not side for side, least in zip(grid, config.mask_size)):
        raise InputError(f"a batch's masks must have a multiple of {config.mask_size} cells, not {grid}")
