"""Collectives are found in HLO text, with what they send and how often."""

import json

import pytest

from benchmarks.collectives import Collective, find_collectives, shape_bytes, totals

# What XLA writes for TPUs: tuple shapes, tiled layouts, loops without a known trip count, and an
# all-gather whose three parts are in three fusions of one channel.
TPU = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%part.1 (p: bf16[3,1,64]) -> (bf16[3,1,64], bf16[3,8,64], u32[]) {
  %p = bf16[3,1,64]{2,1,0:T(2,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[3,8,64]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={1}
  ROOT %start = (bf16[3,1,64]{2,1,0}, bf16[3,8,64]{2,1,0}, u32[]{:S(2)}) custom-call(%all-gather.1)
}

%part.2 (q: bf16[3,1,64]) -> bf16[3,8,64] {
  %q = bf16[3,1,64]{2,1,0:T(2,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[3,8,64]{2,1,0} all-gather(%q), channel_id=7, dimensions={1}
}

%inner.body (a: (s32[], bf16[1024])) -> (s32[], bf16[1024]) {
  %a = (s32[]{:T(128)}, bf16[1024]{0:T(1024)(128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%a), index=0
  %g = bf16[1024]{0:T(1024)(128)(2,1)} get-tuple-element(%a), index=1
  %h = pred[5]{0:T(256)} custom-call(%g), custom_call_target="x"
  %reduced = (bf16[1024]{0:T(1024)(128)(2,1)S(1)}, /*index=1*/pred[5]{0}) all-reduce(%g, %h), \
channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%add, \
metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=7}, backend_config={"a":"(b"}
  ROOT %out = (s32[]{:T(128)}, bf16[1024]{0}) tuple(%i, %g)
}

%inner.condition (b: (s32[], bf16[1024])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %b = (s32[]{:T(128)}, bf16[1024]{0:T(1024)(128)(2,1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%b), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%outer.body (c: (s32[], bf16[1024])) -> (s32[], bf16[1024]) {
  %c = (s32[]{:T(128)}, bf16[1024]{0:T(1024)(128)(2,1)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[1024]{0}) while(%c), condition=%inner.condition, \
body=%inner.body
}

ENTRY %main (d: (s32[], bf16[1024]), e: bf16[3,1,64], f: f32[16]) -> bf16[3,8,64] {
  %d = (s32[]{:T(128)}, bf16[1024]{0:T(1024)(128)(2,1)}) parameter(0)
  %e = bf16[3,1,64]{2,1,0:T(2,128)(2,1)} parameter(1)
  %f = f32[16]{0:T(128)} parameter(2)
  %loops = (s32[]{:T(128)}, bf16[1024]{0}) while(%d), condition=%inner.condition, \
body=%outer.body, backend_config={"known_trip_count":{"n":"4"}}
  %gathering = (bf16[3,1,64]{2,1,0}, bf16[3,8,64]{2,1,0}, u32[]{:S(2)}) fusion(%e), calls=%part.1
  ROOT %gathered = bf16[3,8,64]{2,1,0} fusion(%e), kind=kCustom, calls=%part.2
}
"""

# Asynchronous forms, in pairs of their own and wrapped in a computation.
ASYNC = """
%wrapped (p: f32[16]) -> f32[2] {
  %p = f32[16]{0} parameter(0)
  ROOT %scattered = f32[2]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (a: f32[16]) -> f32[128] {
  %a = f32[16]{0} parameter(0)
  %r = f32[16]{0} all-reduce-start(%a), to_apply=%add
  %r.done = f32[16]{0} all-reduce-done(%r)
  %g = (f32[16]{0}, f32[128]{0}) all-gather-start(%r.done), dimensions={0}
  %g.done = f32[128]{0} all-gather-done(%g)
  %p = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%a), \
source_target_pairs={{0,1},{1,0}}
  %p.done = f32[16]{0} collective-permute-done(%p)
  %s = ((f32[16]{0}), f32[2]{0}, u32[]) async-start(%a), calls=%wrapped
  %s.done = f32[2]{0} async-done(%s), calls=%wrapped
  %b = f32[8]{0} slice(%a), slice={[0:8]}
  %t = (f32[8]{0}, f32[8]{0}) all-to-all(%b, %b), replica_groups={{0,1}}
  ROOT %out = f32[128]{0} copy(%g.done)
}
"""

# Sums over the sharded axis: once a gradient of 32 × 32, and six times one of 16 × 48 in a scan in
# which each needs the one before.
PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from benchmarks.collectives import find_collectives, totals

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

def shape(*sides, spec=P()):
    return jax.ShapeDtypeStruct(sides, jnp.float32, sharding=NamedSharding(mesh, spec))

def program(x, y, z, w):
    def body(w, z):
        return jnp.tanh(jnp.einsum("bd,bk->dk", z, z @ w)), None
    return jnp.einsum("bd,bk->dk", x, y), jax.lax.scan(body, w, z)[0]

rows = P("data")
arguments = (
    shape(64, 32, spec=rows), shape(64, 32, spec=rows),
    shape(6, 64, 16, spec=P(None, "data")), shape(16, 48),
)
jitted = jax.jit(program, out_shardings=NamedSharding(mesh, P()))
print(json.dumps(totals(find_collectives(jitted.lower(*arguments).compile().as_text()))))
"""


def test_loops_multiply_and_a_channel_counts_once():
    found = find_collectives(TPU)
    assert sorted(found, key=lambda c: c.kind) == [
        Collective("all-gather", 3 * 8 * 64 * 2, 1, ""),
        Collective("all-reduce", 1024 * 2 + 5, 4 * 5, "jit(step)/while/body/dot_general"),
    ]
    assert totals(found) == {
        "all-reduce": {"bytes": 20 * 2053, "calls": 20},
        "all-gather": {"bytes": 3072, "calls": 1},
    }


def test_asynchronous_forms_count_as_the_plain_ones():
    assert totals(find_collectives(ASYNC)) == {
        "all-reduce": {"bytes": 64, "calls": 1},
        "all-gather": {"bytes": 512, "calls": 1},
        "reduce-scatter": {"bytes": 64, "calls": 1},
        "all-to-all": {"bytes": 64, "calls": 1},
        "collective-permute": {"bytes": 64, "calls": 1},
    }


def test_a_loop_of_unknown_length_matters_only_with_a_collective_in_it():
    unknown = TPU.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="how often the all-reduce in inner.body is called"):
        find_collectives(unknown)
    silent = unknown.replace(") all-reduce(", ") custom-call(")
    assert set(totals(find_collectives(silent))) == {"all-gather"}


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no entry computation"):
        find_collectives("module @jit_step {}")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4),
        ("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}", 30),
        ("(f32[2]{0}, /*index=1*/(s8[3]{0}, token[]), pred[7])", 18),
        ("f8e4m3fn[16]", 16),
        ("s4[5]", 3),
        ("c64[2]", 16),
        ("f32[0,8]", 0),
    ],
)
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


def test_a_program_compiled_for_eight_devices(start_python):
    process = start_python("-c", PROGRAM, devices=8)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    reduced = json.loads(out)["all-reduce"]
    assert reduced["bytes"] == (32 * 32 + 6 * 16 * 48) * 4
