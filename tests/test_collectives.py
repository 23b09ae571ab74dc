"""The reading of compiled programs: what they send, and how often."""

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import Collective
from jax.sharding import NamedSharding, PartitionSpec

from samjax.sharding import make_mesh

LAYERS, WIDTH, ROWS = 5, 8, 24


def compiled(weights: PartitionSpec, function) -> str:
    """A function of stacked weights and rows, compiled for eight devices."""
    mesh = make_mesh(8)
    place = lambda shape, spec: jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))
    args = place((LAYERS, WIDTH, WIDTH), weights), place((ROWS, WIDTH), PartitionSpec("fsdp"))
    return jax.jit(function).lower(*args).compile().as_text()


def loss(weights, rows):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), rows, weights)[0].sum()


def test_a_gather_within_a_loop_is_counted_as_often_as_it_runs():
    found = collectives.collectives(compiled(PartitionSpec(None, None, "fsdp"), loss))
    gathers = [each for each in found if each.kind == "all-gather"]
    assert gathers and {each.shapes for each in gathers} <= {(("f32", (WIDTH, WIDTH)),), (("f32", (ROWS, WIDTH)),)}
    assert {each.times for each in gathers} == {LAYERS}
    assert collectives.summary(found)["all-gather"]["runs"] == LAYERS * len(gathers)


def test_sums_alone_where_nothing_is_divided():
    found = collectives.collectives(compiled(PartitionSpec(), jax.grad(loss)))
    assert {each.kind for each in found} == {"all-reduce"}
    shapes = [(LAYERS, WIDTH, WIDTH)]
    assert not collectives.unexpected(found, shapes, {"all-reduce"}, small=0)
    assert len(collectives.unexpected(found, shapes, set(), small=0)) == len(found)
    assert sum(each.times * each.bytes for each in found) == 4 * LAYERS * WIDTH * WIDTH


TPU = """HloModule step

%cond (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[8]{0:T(8)}) parameter(0)
  %limit = s32[]{:T(128)} constant(11), metadata={op_name="cond"}
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(8)}) parameter(0)
  %x = f32[8]{0:T(8)} get-tuple-element(%state), index=1
  %gather = (f32[8]{0:T(8)}, f32[64]{0:T(64)S(1)}) all-gather-start(%x), dimensions={0}
  %gathered = f32[64]{0:T(64)} all-gather-done(%gather)
  ROOT %out = (s32[]{:T(128)}, f32[8]{0:T(8)}) tuple(%state, %x)
}

%all-reduce-scatter (x: bf16[16,4]) -> bf16[2,4] {
  %x = bf16[16,4]{1,0:T(8,128)} parameter(0)
  %sum = bf16[16,4]{1,0:T(8,128)} all-reduce(%x), to_apply=%add
  ROOT %slice = bf16[2,4]{1,0:T(8,128)} dynamic-slice(%sum, %x), dynamic_slice_sizes={2,4}
}

ENTRY %main (a: bf16[16,4], b: (s32[], f32[8])) -> bf16[2,4] {
  %a = bf16[16,4]{1,0:T(8,128)} parameter(0)
  %b = (s32[]{:T(128)}, f32[8]{0:T(8)}) parameter(1)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(8)}) while(%b), condition=%cond, body=%body
  %both = (f32[3]{0:T(8)}, /*index=1*/s32[]{:T(128)}) all-reduce(%p, %q), to_apply=%add
  ROOT %fused = bf16[2,4]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_the_forms_that_tpus_have():
    assert collectives.collectives(TPU) == [
        Collective("all-gather", (("f32", (64,)),), 11), Collective("all-reduce", (("f32", (3,)), ("s32", ())), 1),
        Collective("reduce-scatter", (("bf16", (16, 4)),), 1)]
    assert collectives.summary(collectives.collectives(TPU)) == {
        "all-gather": {"operations": 1, "runs": 11, "bytes": 11 * 256},
        "all-reduce": {"operations": 1, "runs": 1, "bytes": 16},
        "reduce-scatter": {"operations": 1, "runs": 1, "bytes": 128}}


def test_what_is_no_parameter_is_named():
    found = [Collective("all-gather", (("f32", (64, 64)),), 3), Collective("all-gather", (("f32", (100, 64)),), 3)]
    kinds = {"all-gather", "all-reduce"}
    assert collectives.unexpected(found, [(7, 16, 256)], kinds, small=10) == ["all-gather of f32[100, 64], 3 times"]
    assert collectives.unexpected(found[:1], [(4096,)], {"all-reduce"}) == ["all-gather of f32[64, 64], 3 times"]


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives.collectives("module @jit_f {}")
    with pytest.raises(ValueError, match="no plain count"):
        collectives.collectives(TPU.replace("constant(11)", "copy(%i)"))
