"""`load` a model, `encode` a picture, `segment` it by prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from samjax.config import SamConfig, TinyViT
from samjax.embeddings import Embedded
from samjax.errors import InputError
from samjax.geometry import masks_to_image, prepare, target_size
from samjax.image import read_image
from samjax.model.sam import Masks, Prompts, decode_masks, encode_image
from samjax.parallel import MeshMap, mesh_map
from samjax.prompts import SLOTS, bucket, make_slots, pad_slots

OBJECTS = (8, 64)  # a call is compiled for 8 objects, or for 64; more go in several calls


@partial(jax.tree_util.register_dataclass, data_fields=["features", "image_sizes"], meta_fields=[])
@dataclass(frozen=True)
class Embedding:
    """Encoded pictures: features (b, h, w, 256) on the device, image_sizes (b, 2) int32 (height, width).

    `len` counts the pictures, an index or a slice picks some (still with a leading axis b).
    """

    features: Array
    image_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int | slice) -> "Embedding":
        if not isinstance(index, slice):
            index = range(len(self))[index]  # negative and out of range as in a list
            index = slice(index, index + 1)
        return Embedding(self.features[index], self.image_sizes[index])


@dataclass(frozen=True)
class Segmentation:
    """Masks of n objects, m for each (NumPy, on the host).

    masks: bool (n, m, h, w) at the picture's size. iou: float32 (n, m), the model's own estimate of each mask's IoU
    (a linear output: it may exceed 1). logits: float32 (n, m, H, W) at low resolution, to be fed back as mask_logits.
    """

    masks: np.ndarray
    iou: np.ndarray
    logits: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """(n,) the index of each object's most confident mask."""
        return self.iou.argmax(axis=1)


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config"])
@dataclass(frozen=True)
class Sam:
    """A model: a config and its parameters, nothing else. It is a pytree and never remembers a picture."""

    config: SamConfig
    params: dict

    def encode(self, image) -> Embedding:
        """Encodes a picture, or a list of pictures of any sizes.

        image: a path, a PIL image, an array uint8 (h, w, 3) (see `samjax.image.read_image`), or a list of these. A
            list is divided among all devices of this process. An accelerator encodes eight of it at a time, of a short
            list too, so that a picture's features do not depend on how many others there are.
        Raises InputError for what is no picture.
        """
        several = isinstance(image, (list, tuple))
        images = list(image) if several else [image]
        if not images:
            raise InputError("no image: the list is empty")
        spread = several and jax.local_device_count() > 1
        size = (_batch_size() if several else 1) * (jax.local_device_count() if spread else 1)
        features, sizes = [], []
        for start in range(0, len(images), size):
            pixels, valid, originals = zip(*(self._prepare(i) for i in images[start : start + size]))
            missing = size - len(pixels)  # the last batch is filled up, so that it needs no program of its own
            batch = np.stack(pixels + pixels[-1:] * missing), np.array(valid + valid[-1:] * missing, np.int32)
            out = self._encode_spread(batch) if spread else _encode(self.config, self.params, *batch)
            features.append(out[: len(pixels)])
            sizes += originals
        whole = features[0] if len(features) == 1 else (np if spread else jnp).concatenate(features)
        return Embedding(jnp.asarray(whole), np.array(sizes, np.int32))

    def segment(self, embedding: "Embedding | Embedded", points=None, labels=None, boxes=None, mask_logits=None,
                multimask: bool = True) -> Segmentation:
        """Masks of one picture's objects.

        Args:
            embedding: of one picture (pick one of a batch by its index), or an `Embedded` that was read from disk
                (`samjax.embeddings`).
            points: (t, 2) for one object or (n, t, 2) for n, x before y in the picture's pixels.
            labels: (t,) or (n, t): 1 foreground, 0 background, -2 no point.
            boxes: (4,) or (n, 4), x0, y0, x1, y1.
            mask_logits: (H, W) or (n, H, W): logits of an earlier answer, or `mask_to_logits` of a mask. Masks were
                only ever trained together with a point or box; alone they are a weak prompt.
            multimask: True gives three masks an object (for ambiguous prompts: choose by `iou`), False the one that
                is best for several points, a box, or a mask fed back.

        All that are given are combined for each object. Raises InputError. The same compiled program serves any mix
        of prompts up to 8 objects with 8 slots (a point is a slot, a box two), another one up to 64 objects.
        """
        return self.segment_batch(embedding, [dict(points=points, labels=labels, boxes=boxes,
                                                   mask_logits=mask_logits)], multimask)[0]

    def segment_batch(self, embedding: Embedding, prompts: Sequence[dict],
                      multimask: bool = True) -> list[Segmentation]:
        """`segment` for several pictures with different prompts: one dict of its arguments for each picture."""
        if isinstance(embedding, Embedded):
            embedding = Embedding(jnp.asarray(embedding.features)[None], embedding.image_size[None])
        if len(prompts) != len(embedding):
            raise InputError(f"{len(embedding)} pictures but prompts for {len(prompts)}: pick one picture with "
                             "embedding[i], or give segment_batch one dict of prompts for each")
        self._check(embedding)
        slots = [make_slots(self.config, tuple(size), **prompt)
                 for size, prompt in zip(embedding.image_sizes.tolist(), prompts)]
        chosen = slice(1, None) if multimask else slice(0, 1)
        return [self._finish(self._decode(embedding[i].features, s), size, chosen)
                for i, (s, size) in enumerate(zip(slots, embedding.image_sizes.tolist()))]

    def everything(self, image, preset: str | None = None, **settings) -> list[dict]:
        """Masks of everything in a picture, found by a grid of points: the official generator's results.

        Args:
            image: as for `encode`, one picture.
            preset: "fast", "paper" or "dense"; see `samjax.settings`.
            settings: fields of `samjax.settings.Settings` by their official names (points_per_side=32,
                pred_iou_thresh=0.88, stability_score_thresh=0.95, crop_n_layers=0, min_mask_region_area=0,
                output_mode="binary_mask", ...), in place of the preset's.

        Returns:
            A dict for each mask, in the official order: segmentation (bool (h, w), or run lengths as `output_mode`
            says), area, bbox (x, y, width, height; the width is that of the last pixel minus the first),
            predicted_iou, point_coords [[x, y]], stability_score, crop_box.

        Raises InputError.
        """
        from samjax.automatic import everything, make_settings

        return everything(self, image, make_settings(preset, **settings))

    @cached_property
    def everywhere(self) -> dict:
        """The parameters on all devices of this process."""
        return spread_encoder(self.config).place(self.params) if jax.local_device_count() > 1 else self.params

    def _encode_spread(self, batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Features of frames (b, H, W, c) with sizes (b, 2), b a multiple of the devices: each encodes its share."""
        encoder = spread_encoder(self.config)
        return encoder.fetch(encoder(self.everywhere, encoder.feed(batch)))

    def _prepare(self, image) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        array = read_image(image, self.config.in_channels)
        return *prepare(array, self.config), array.shape[:2]

    def _check(self, embedding: Embedding) -> None:
        expected = (*self.config.grid, self.config.channels)
        if embedding.features.shape[1:] != expected:
            raise InputError(f"the embedding has shape {embedding.features.shape[1:]} where {self.config.name} has "
                             f"{expected}: it was made by another model")

    def _decode(self, features: Array, slots) -> tuple[np.ndarray, np.ndarray]:
        """All four masks of each object: logits (n, 4, H, W), iou (n, 4)."""
        n, tokens = slots[1].shape
        objects, tokens = next((size for size in OBJECTS if size >= n), OBJECTS[-1]), bucket(tokens, SLOTS)
        parts = []
        for start in range(0, n, objects):
            part = tuple(array[start : start + objects] for array in slots)
            count = len(part[1])
            padded = Prompts(*(array[None] for array in pad_slots(part, objects, tokens)))
            logits, iou = _decode_some(self.config, self.params, features, padded, np.int32(count))
            parts.append((np.asarray(logits[0, :count]), np.asarray(iou[0, :count])))
        return tuple(np.concatenate(arrays) for arrays in zip(*parts))

    def _finish(self, decoded, image_hw, chosen: slice) -> Segmentation:
        logits, iou = (array[:, chosen] for array in decoded)
        new_hw = target_size(*image_hw, self.config.image_size)
        masks = masks_to_image(logits, self.config, new_hw, tuple(image_hw))
        return Segmentation(masks, iou, logits)


def load(model="mobile_sam", *, dtype: str = "float32", image_size: int | tuple[int, int] | None = None,
         in_channels: int | None = None, train: bool = False, int8: bool = False) -> Sam:
    """Loads a model.

    Args:
        model: a known name (see `samjax weights`; fetched into the cache on first use) or the path of a `.pth`, a
            `.safetensors` or a directory written by samjax.
        dtype: of the computation, "float32" or "bfloat16"; parameters stay float32.
        image_size: the encoder's input, a multiple of 16 or (h, w) of such; default: the model's own (1024). The
            position tables are resized.
        in_channels: channels of the pictures; default 3. The first kernel is adapted.
        train: keeps BatchNorm apart from the convolutions (MobileSAM), as training needs it.
        int8: holds large weights as int8 (`samjax.quantise`): a ViT in a quarter of the memory, a TinyViT in 0.57 of
            it; a file of int8 weights (`samjax convert --int8`) is held so in any case. Not together with train.

    Raises InputError: unknown name, missing or damaged file, a file of another kind of model.
    """
    import convert
    from samjax.model.quantise import quantise
    from samjax.model.resize import adapt_channels, resize_positions
    from samjax.weights import resolve

    source = convert.read(resolve(model))
    int8 = int8 or source.int8
    if int8 and train:
        raise InputError("int8 weights cannot be trained: load the float32 model, without int8")
    config, params = source.config, source.params()
    try:
        if image_size is not None:
            config, params = resize_positions(config, params, image_size)
        if in_channels is not None:
            config, params = adapt_channels(config, params, in_channels)
        config = replace(config, dtype=dtype)
    except ValueError as error:
        raise InputError(str(error)) from None
    if isinstance(config.encoder, TinyViT) and not train:
        from samjax.model.fold import fold_batch_norm

        config, params = fold_batch_norm(config, params)
    return Sam(config, jax.device_put(quantise(params) if int8 else params))


def normalise(config: SamConfig, pixels: Array, valid: Array) -> Array:
    """uint8 (b, H, W, c) with (b, 2) sizes of the pictures in it -> the float32 that the encoder takes.

    Jit-able twin of `samjax.geometry.normalise`; the padding becomes 0 after normalising.
    """
    h, w = pixels.shape[1:3]
    inside = (jnp.arange(h)[None, :, None] < valid[:, :1, None]) & (jnp.arange(w)[None, None, :] < valid[:, 1:, None])
    inside, x = inside[..., None], pixels.astype(jnp.float32)
    if config.normalise == "mean_std":
        x = (x - jnp.array(config.pixel_mean, jnp.float32)) / jnp.array(config.pixel_std, jnp.float32)
    else:
        low = jnp.min(jnp.where(inside, x, 255.0), axis=(1, 2, 3), keepdims=True)
        high = jnp.max(jnp.where(inside, x, 0.0), axis=(1, 2, 3), keepdims=True)
        x = (x - low) / jnp.maximum(high - low, 1e-8)
    return jnp.where(inside, x, 0.0)


@partial(jax.jit, static_argnums=0)
def _encode(config: SamConfig, params: dict, pixels: Array, valid: Array) -> Array:
    return encode_image(config, params, normalise(config, pixels, valid))


@partial(jax.jit, static_argnums=0)
def _decode_some(config: SamConfig, params: dict, features: Array, prompts: Prompts, count: Array) -> Masks:
    """Decodes the first `count` of n objects: the cost follows `count`, the program does not depend on it."""
    n = prompts.labels.shape[1]
    size = min(_batch_size(), n)
    h, w = config.mask_size
    masks = config.decoder.masks
    empty = Masks(jnp.zeros((1, n, masks, h, w)), jnp.zeros((1, n, masks)))

    def step(i, done: Masks) -> Masks:
        part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * size, size, axis=1), prompts)
        answer = decode_masks(config, params, features, part)
        return jax.tree.map(lambda all_, x: lax.dynamic_update_slice_in_dim(all_, x, i * size, axis=1), done, answer)

    return lax.fori_loop(0, (count + size - 1) // size, step, empty)


@lru_cache(maxsize=8)
def spread_encoder(config: SamConfig, devices: tuple | None = None) -> MeshMap:
    """`encode_image` of (frames uint8 (b, H, W, c), sizes int32 (b, 2)), over this process's devices or those given."""
    return mesh_map(lambda params, batch: encode_image(config, params, normalise(config, *batch)), devices)


def _batch_size() -> int:
    """How much to do at a time: one picture or prompt keeps a CPU busy and its cache small; a GPU or TPU wants more."""
    return 1 if jax.default_backend() == "cpu" else 8
