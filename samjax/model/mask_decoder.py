"""The two-way transformer and the mask heads (Segment Anything, appendix A, "Lightweight mask decoder").

Tokens are few (about ten) and image positions many (4096), so the cross-attentions are computed without projecting
the image at all: q . (W_k x) is evaluated as (W_k^T q) . x, and W_v (sum of weights * x) in place of the weighted sum
of W_v x. The result is the same, the cost is that of a matrix product with 8 rows a token, and nothing of the size of
the image is written between. (The keys' bias shifts all scores of a query alike, so the softmax drops it.)

Here p is an image position, r = (t k) a token and a head.
"""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from samjax.config import SamConfig
from samjax.model.layers import Dense, LayerNorm, Weights, gelu, init_conv, layer_norm, matmul
from samjax.model.mixed import product

EPS, UPSCALE_EPS = 1e-5, 1e-6  # of the norms in the transformer, and in the upscaling


exact = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # among the few tokens float32 costs nothing


@jax.custom_jvp
def softmax_of_tokens(scores: Array) -> Array:
    """Softmax over axis 2 of (b, n, t, k, p): over the few tokens, at each of the many positions.

    Sums over the tokens are written out, so that they run along the positions and vectorise; on a CPU that takes a
    third of the time of `jax.nn.softmax`, and its gradient a fifteenth.
    """
    weights = jnp.exp(scores - _over_tokens(jnp.maximum, jnp.max, scores))
    return weights / _over_tokens(jnp.add, jnp.sum, weights)


def _over_tokens(operation, whole, x: Array) -> Array:
    """The result for all tokens, in the place of each: stacked, since a broadcast's gradient is the slow sum again."""
    t = x.shape[2]
    if not isinstance(t, int):  # left open, in a program that is exported
        return whole(x, axis=2, keepdims=True)
    return jnp.stack([reduce(operation, jnp.unstack(x, axis=2))] * t, axis=2)


@softmax_of_tokens.defjvp
def _softmax_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    weights = softmax_of_tokens(*primals)
    change = weights * tangents[0]
    return weights, change - weights * _over_tokens(jnp.add, jnp.sum, change)


class Attention(nn.Module):
    """The four projections of an attention; subclasses contract them."""

    config: SamConfig
    width: int  # of all heads together: 256 among tokens, 128 between tokens and image

    def setup(self):
        self.q, self.k, self.v = Weights(self.width), Weights(self.width), Weights(self.width)
        self.out = Weights(self.config.channels)

    @property
    def scale(self) -> float:
        return (self.width // self.config.decoder.heads) ** -0.5

    def by_head(self, projection: Weights) -> tuple[Array, Array]:
        """Kernel (c, k, d) and bias (k, d)."""
        kernel, bias = projection(self.config.channels)
        heads = self.config.decoder.heads
        return rearrange(kernel, "c (k d) -> c k d", k=heads), rearrange(bias, "(k d) -> k d", k=heads)

    def project(self, x: Array, projection: Weights) -> Array:
        """(b, n, t, c) -> (b, n, t, k, d)."""
        kernel, bias = self.by_head(projection)
        return exact("bntc,ckd->bntkd", x, kernel) + bias

    def join(self, x: Array) -> Array:
        """The output projection: (b, n, t, k, d) -> (b, n, t, c)."""
        kernel, bias = self.out(self.width)
        return exact("bntc,cd->bntd", rearrange(x, "b n t k d -> b n t (k d)"), kernel) + bias

    def dot(self, pattern: str, x: Array, y: Array, into_image: bool = False) -> Array:
        """einsum over the image in the computation's dtype, summed up and returned in float32; where mixed, a result as
        large as the image (`into_image`) is rounded to that dtype."""
        dtype = self.config.dtype
        x, y = x.astype(dtype), y.astype(dtype)
        if not self.config.decoder.mixed:
            return jnp.einsum(pattern, x, y, preferred_element_type=jnp.float32)
        return product(pattern, dtype if into_image else "float32", x, y).astype(jnp.float32)


class TokenAttention(Attention):
    """Tokens attend to tokens: x (queries and keys), v (b, n, t, c), valid (b, n, t) -> (b, n, t, c)."""

    def __call__(self, x: Array, v: Array, valid: Array) -> Array:
        q, k, v = self.project(x, self.q), self.project(x, self.k), self.project(v, self.v)
        scores = exact("bntkd,bnskd->bnkts", q * self.scale, k)
        weights = jax.nn.softmax(jnp.where(valid[:, :, None, None], scores, -jnp.inf), axis=-1)
        return self.join(exact("bnkts,bnskd->bntkd", weights, v))


class TokenToImage(Attention):
    """Tokens attend to the image: tokens (b, n, t, c); image with and without positions (b, n, p, c)."""

    def __call__(self, tokens: Array, keys: Array, values: Array) -> Array:
        heads = self.config.decoder.heads
        q = self.project(tokens, self.q) * self.scale
        probes = exact("bntkd,ckd->bntkc", q, self.by_head(self.k)[0])
        # Answers have scores in float32 whatever the dtype: a softmax over so many positions magnifies what bfloat16
        # rounds away (of ViT-H's masks one would fall from 0.99 to 0.96 of IoU with its float32 self).
        score = self.dot if self.config.decoder.mixed else exact
        scores = score("bnrc,bnpc->bnrp", rearrange(probes, "b n t k c -> b n (t k) c"), keys)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        seen = self.dot("bnrp,bnpc->bnrc", weights, values) / weights.sum(-1, keepdims=True)
        kernel, bias = self.by_head(self.v)
        seen = rearrange(seen, "b n (t k) c -> b n t k c", k=heads)
        return self.join(exact("bntkc,ckd->bntkd", seen, kernel) + bias)


class ImageToToken(Attention):
    """The image attends to the tokens: image (b, n, p, c); keys, values (b, n, t, c); valid (b, n, t)."""

    def __call__(self, image: Array, keys: Array, values: Array, valid: Array) -> Array:
        heads = self.config.decoder.heads
        kernel, bias = self.by_head(self.q)
        k = self.project(keys, self.k) * self.scale
        probes = exact("bntkd,ckd->bntkc", k, kernel)
        offset = jnp.where(valid[..., None], exact("bntkd,kd->bntk", k, bias), -jnp.inf)
        scores = self.dot("bnrc,bnpc->bnrp", rearrange(probes, "b n t k c -> b n (t k) c"), image)
        scores = rearrange(scores, "b n (t k) p -> b n t k p", k=heads) + offset[..., None]
        weights = rearrange(softmax_of_tokens(scores), "b n t k p -> b n (t k) p")
        out_kernel, out_bias = self.out(self.width)
        out_kernel = rearrange(out_kernel, "(k d) c -> k d c", k=heads)
        answers = exact("bntkd,kdc->bntkc", self.project(values, self.v), out_kernel)
        answers = rearrange(answers, "b n t k c -> b n (t k) c")
        return self.dot("bnrp,bnrc->bnpc", weights, answers, into_image=True) + out_bias


class Mlp(nn.Module):
    """Dense layers with ReLU between, in float32."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            for i, width in enumerate(self.widths):
                x = Dense(width, name=f"layers_{i}")(x if i == 0 else nn.relu(x))
        return x


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP on tokens, image to tokens."""

    config: SamConfig
    first: bool
    train: bool = False

    @nn.compact
    def __call__(self, tokens: Array, image: Array, token_code: Array, image_code: Array,
                 valid: Array) -> tuple[Array, Array]:
        config, c = self.config, self.config.channels
        norm = lambda name, x: LayerNorm(EPS, name=name)(x)
        drop = nn.Dropout(config.decoder.dropout, deterministic=not self.train)
        self_attention = TokenAttention(config, c, name="self_attn")
        if self.first:  # no position code and no residual here: official behaviour
            tokens = drop(self_attention(tokens, tokens, valid))
        else:
            tokens = tokens + drop(self_attention(tokens + token_code, tokens, valid))
        tokens = norm("norm1", tokens)
        placed = place(image, image_code)
        tokens = tokens + drop(TokenToImage(config, c // 2, name="token_to_image")(tokens + token_code, placed, image))
        tokens = norm("norm2", tokens)
        tokens = norm("norm3", tokens + drop(Mlp((config.decoder.mlp, c), name="mlp")(tokens)))
        answer = ImageToToken(config, c // 2, name="image_to_token")(placed, tokens + token_code, tokens, valid)
        norm4 = LayerNorm(EPS, name="norm4")
        if not config.decoder.mixed:
            return tokens, norm4(image + drop(answer))
        return tokens, jax.checkpoint(_norm_of_sum)(image, drop(answer).astype(image.dtype), *norm4.weights(c))


def _norm_of_sum(image: Array, answer: Array, scale: Array, bias: Array) -> Array:
    return layer_norm(image.astype(jnp.float32) + answer.astype(jnp.float32), scale, bias, EPS).astype(image.dtype)


def place(image: Array, image_code: Array) -> Array:
    """Positions with their code, added in float32: (b, n, p, c), (p, c)."""
    return (image.astype(jnp.float32) + image_code).astype(image.dtype)


class MaskDecoder(nn.Module):
    """Features and prompt tokens to mask logits and predicted IoU.

    Args of the call:
        image: (b, 1 or n, h, w, c) features with the dense prompt added.
        image_code: (h, w, c) the position code of the grid.
        tokens: (b, n, t, c) the prompt's tokens; valid: (b, n, t) False for empty slots.

    Returns:
        logits (b, n, m, 4 h, 4 w) float32 and iou (b, n, m) float32 for all m = 4 mask tokens, the single-mask token
        first. The IoU is a plain linear output: it may exceed 1.
    """

    config: SamConfig
    train: bool = False

    @nn.compact
    def __call__(self, image: Array, image_code: Array, tokens: Array, valid: Array) -> tuple[Array, Array]:
        config, c, masks = self.config, self.config.channels, self.config.decoder.masks
        b, n = tokens.shape[:2]
        h, w = image.shape[2:4]
        normal = nn.initializers.normal(1.0)
        learned = [self.param("iou_token", normal, (1, c)), self.param("mask_tokens", normal, (masks, c))]
        tokens = jnp.concatenate([jnp.broadcast_to(jnp.concatenate(learned), (b, n, 1 + masks, c)), tokens], axis=2)
        valid = jnp.concatenate([jnp.ones((b, n, 1 + masks), bool), valid], axis=2)

        x = rearrange(image, "b n h w c -> b n (h w) c")
        x = jnp.broadcast_to(x, (b, n, h * w, c)).astype(config.dtype if config.decoder.mixed else "float32")
        code, image_code = tokens, rearrange(image_code, "h w c -> (h w) c")
        for i in range(config.decoder.depth):
            block = TwoWayBlock(config, i == 0, self.train, name=f"blocks_{i}")
            tokens, x = block(tokens, x, code, image_code, valid)
        final = TokenToImage(config, c // 2, name="final_token_to_image")
        tokens = LayerNorm(EPS, name="final_norm")(tokens + final(tokens + code, place(x, image_code), x))

        hyper = [Mlp((c, c, c // 8), name=f"hyper_{i}")(tokens[:, :, 1 + i]) for i in range(masks)]
        upscale = Upscale(c, config.dtype, config.decoder.mixed, name="upscale")
        logits = upscale(rearrange(x, "b n (h w) c -> b n h w c", h=h), jnp.stack(hyper, axis=2))
        return logits, Mlp((c, c, masks), name="iou_head")(tokens[:, :, 0])


class Upscale(nn.Module):
    """Twice doubled features times a vector a mask: (b, n, h, w, c), (b, n, m, c / 8) -> (b, n, m, 4 h, 4 w).

    A transposed 2 x 2 convolution of stride 2 is a linear map from a cell to its four children. The children stay
    beside their cell (axes y x, then Y X) until the product with the masks' vectors has made the array small.
    """

    channels: int
    dtype: str
    mixed: bool = False

    @nn.compact
    def __call__(self, x: Array, hyper: Array) -> Array:
        first = Children(self.channels // 4, self.dtype, name="conv1")
        norm = LayerNorm(UPSCALE_EPS, name="norm")
        second = Children(self.channels // 8, self.dtype, name="conv2")
        if self.mixed:
            return self._mixed(x, hyper, first.weights(self.channels), norm.weights(first.features),
                               second.weights(first.features))
        x = gelu(second(gelu(norm(first(x)))))
        logits = jnp.einsum("bnhwyxYXc,bnmc->bnmhwyxYX", x.astype(self.dtype), hyper.astype(self.dtype),
                            preferred_element_type=jnp.float32)
        return rearrange(logits, "b n m h w y x Y X -> b n m (h y Y) (w x X)")

    def _mixed(self, x: Array, hyper: Array, conv1: tuple[Array, Array], norm: tuple[Array, Array],
               conv2: tuple[Array, Array]) -> Array:
        """The same on a list of cells, each one's children beside it; of each layer its weights."""
        def children(x: Array, kernel: Array) -> Array:
            return rearrange(jnp.matmul(x, kernel.astype(x.dtype)), "b n p (k d) -> b n (p k) d", k=4)

        h, w = x.shape[2:4]
        x = children(rearrange(x, "b n h w c -> b n (h w) c"), conv1[0])
        x = children(jax.checkpoint(_norm_and_gelu)(x, conv1[1], *norm), conv2[0])
        x = jax.checkpoint(_gelu_of_sum)(x, conv2[1])
        logits = product("bnpc,bnmc->bnpm", "float32", x, hyper.astype(x.dtype))
        return rearrange(logits, "b n (h w y x Y X) m -> b n m (h y Y) (w x X)", h=h, w=w, y=2, x=2, Y=2, X=2)


def _norm_and_gelu(x: Array, bias: Array, scale: Array, shift: Array) -> Array:
    return gelu(layer_norm(x.astype(jnp.float32) + bias, scale, shift, UPSCALE_EPS)).astype(x.dtype)


def _gelu_of_sum(x: Array, bias: Array) -> Array:
    return gelu(x.astype(jnp.float32) + bias).astype(x.dtype)


class Children(nn.Module):
    """(..., c) -> (..., 2, 2, features): the four children of each cell."""

    features: int
    dtype: str

    @nn.compact
    def weights(self, inputs: int) -> tuple[Array, Array]:
        """Kernel (inputs, 4 features), the children side by side, and bias (features,)."""
        kernel = self.param("kernel", init_conv, (2, 2, inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return rearrange(kernel, "y x c d -> c (y x d)"), bias

    def __call__(self, x: Array) -> Array:
        kernel, bias = self.weights(x.shape[-1])
        x = matmul(x, kernel, self.dtype)
        return rearrange(x, "... (y x d) -> ... y x d", y=2, x=2) + bias
