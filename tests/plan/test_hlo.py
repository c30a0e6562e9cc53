"""Traffic of stored compiled programs with known answers, and of one compiled here."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polaris_jax.plan.hlo import program_traffic

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
LAYERS, WIDTH = 6, 1024
MATRIX_BYTES = WIDTH * WIDTH * 2  # bfloat16

HEAD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}
"""


def by_kind(traffic):
    return {(c.kind, c.group): (c.executed, c.payload_bytes) for c in traffic.collectives}


@pytest.mark.parametrize(
    ("name", "devices", "gradients"),
    [
        pytest.param("scan_v5p_2x2x4", 16, "all-reduce+slice", id="v5p"),
        pytest.param("scan_v6e_4x8", 32, "reduce-scatter", id="v6e"),
        pytest.param("scan_h100_8", 8, "reduce-scatter", id="h100"),
    ],
)
def test_a_scan_over_six_sharded_layers(name, devices, gradients):
    """Each layer's weights are gathered forward and again backward, its gradient reduced once.

    On 16 v5p chips the compiler writes that as an all-reduce of which each chip keeps a slice. On
    the GPU the last turn of the loop stands outside of it.
    """
    text = (FIXTURES / f"{name}.hlo.txt").read_text()
    traffic = program_traffic(text, devices=devices)
    assert by_kind(traffic) == {
        ("all-gather", devices): (2 * LAYERS, 2 * LAYERS * MATRIX_BYTES),
        (gradients, devices): (LAYERS, LAYERS * MATRIX_BYTES),
    }
    assert traffic.dynamic_loops == traffic.bounded_loops == 0


@pytest.mark.parametrize(
    ("kind", "passes"), [("reduce-scatter", 1), ("all-reduce", 2), ("all-gather", 1)]
)
def test_bytes_on_the_wire_of_a_ring(kind, passes):
    scale = "dimensions={0}, " if kind != "all-reduce" else ""
    result = {"reduce-scatter": "f32[25]", "all-reduce": "f32[100]", "all-gather": "f32[400]"}[kind]
    text = f"""{HEAD}
ENTRY %main (p: f32[100]) -> {result} {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %c = {result}{{0}} {kind}(%p), {scale}replica_groups=[2,4]<=[8], to_apply=%add
}}
"""
    (found,) = program_traffic(text, devices=8).collectives
    whole = 1600 if kind == "all-gather" else 400
    assert (found.group, found.payload_bytes) == (4, whole)
    assert found.wire_bytes == passes * whole * 3 / 4


@pytest.mark.parametrize(
    ("groups", "size", "span"),
    [
        pytest.param("{{0,1},{2,3},{4,5},{6,7}}", 2, 2, id="listed"),
        pytest.param("{{0,4},{1,5},{2,6},{3,7}}", 2, 5, id="listed, strided"),
        pytest.param("{{0,1},{2,7},{3,4},{5,6}}", 2, 6, id="listed, the widest counts"),
        pytest.param("[2,4]<=[8]", 4, 4, id="iota"),
        pytest.param("[4,2]<=[2,4]T(1,0)", 2, 5, id="iota, strided"),
        pytest.param("[4,2]<=[2,2,2]T(0,2,1)", 2, 3, id="iota, an inner axis"),
        pytest.param("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4, 4, id="an axis"),
        pytest.param("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", 2, 5, id="an outer axis"),
        pytest.param("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 4, 6, id="axes apart"),
        pytest.param("mesh['data'=2,'tensor'=4] {'data','tensor'}", 8, 8, id="axes"),
        # The mesh's devices are 0 4 1 5 2 6 3 7: a part of four, apart by two places, is 0 1, 4 5..
        pytest.param(
            "mesh['axis_0'=8], device_ids=([2,4]T(1,0)) {'axis_0':(2)2}", 2, 2, id="a part"
        ),
        pytest.param(
            "mesh['axis_0'=8], device_ids=([2,4]T(1,0)) {'axis_0':(4)2}", 2, 5, id="an inner part"
        ),
        pytest.param(
            "mesh['a'=4,'b'=2], device_ids=(0,7,1,6,2,5,3,4) {'b'}", 2, 8, id="listed devices"
        ),
        pytest.param("{}", 8, 8, id="all"),
    ],
)
def test_how_many_devices_take_part_and_how_far_apart(groups, size, span):
    text = f"""
ENTRY %main (p: f32[100]) -> f32[100] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %c = f32[100]{{0}} collective-broadcast(%p), channel_id=1, replica_groups={groups}
}}
"""
    (found,) = program_traffic(text, devices=8).collectives
    assert (found.group, found.span, found.largest_bytes) == (size, span, 400)


@pytest.mark.parametrize(
    ("pairs", "span"), [("{{0,1},{1,0},{2,3},{3,2}}", 2), ("{{0,4},{4,0},{3,7},{7,3}}", 5)]
)
def test_a_permute_reaches_as_far_as_its_pairs(pairs, span):
    text = f"""
ENTRY %main (p: f32[100]) -> f32[100] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %c = f32[100]{{0}} collective-permute(%p), channel_id=1, source_target_pairs={pairs}
}}
"""
    (found,) = program_traffic(text, devices=8).collectives
    assert (found.group, found.span) == (8, span)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            "  ROOT %o = f32[400]{0} fusion(%p), kind=kCustom, calls=%inside", id="fusion"
        ),
        pytest.param(
            "  %s = ((f32[100]{0}), f32[400]{0}, u32[]) fusion-start(%p), calls=%inside\n"
            "  %u = ((f32[100]{0}), f32[400]{0}, u32[]) fusion-update(%s), calls=%inside\n"
            "  ROOT %o = f32[400]{0} fusion-done(%u), calls=%inside",
            id="fusion beside others",
        ),
        pytest.param(
            "  %s = ((f32[100]{0}), f32[400]{0}, u32[]) async-start(%p), calls=%inside\n"
            "  ROOT %o = f32[400]{0} async-done(%s), calls=%inside",
            id="async",
        ),
    ],
)
def test_a_collective_inside_something_that_is_called_counts_once(body):
    text = f"""%inside (x: f32[100]) -> f32[400] {{
  %x = f32[100]{{0}} parameter(0)
  ROOT %g = f32[400]{{0}} all-gather(%x), dimensions={{0}}, replica_groups={{{{0,1,2,3}}}}
}}

ENTRY %main (p: f32[100]) -> f32[400] {{
  %p = f32[100]{{0}} parameter(0)
{body}
}}
"""
    traffic = program_traffic(text, devices=4)
    assert by_kind(traffic) == {("all-gather", 4): (1, 1600)}
    assert traffic.hbm_bytes == 400 + 1600


def sliced_reduce(reader):
    return f"""{HEAD}
%take (a: f32[100], i: s32[]) -> f32[25] {{
  %a = f32[100]{{0}} parameter(0)
  %i = s32[] parameter(1)
  %half = bf16[100]{{0}} convert(%a)
  %cut = bf16[25]{{0}} dynamic-slice(%half, %i), dynamic_slice_sizes={{25}}
  ROOT %wide = f32[25]{{0}} convert(%cut)
}}

ENTRY %main (p: f32[100], j: s32[]) -> f32[25] {{
  %p = f32[100]{{0}} parameter(0)
  %j = s32[] parameter(1)
  %r = f32[100]{{0}} all-reduce(%p), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
{reader}
}}
"""


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        pytest.param(
            "  ROOT %o = f32[25]{0} fusion(%r, %j), kind=kLoop, calls=%take",
            "all-reduce+slice",
            id="in a fusion",
        ),
        pytest.param(
            "  ROOT %o = f32[25]{0} dynamic-slice(%r, %j), dynamic_slice_sizes={25}",
            "all-reduce+slice",
            id="by itself",
        ),
        pytest.param(
            "  %n = f32[100]{0} negate(%r)\n"
            "  ROOT %o = f32[25]{0} dynamic-slice(%r, %j), dynamic_slice_sizes={25}",
            "all-reduce",
            id="read whole too",
        ),
        pytest.param("  ROOT %o = f32[100]{0} copy(%r)", "all-reduce", id="returned"),
    ],
)
def test_an_all_reduce_of_which_a_slice_is_kept(reader, kind):
    (found,) = program_traffic(sliced_reduce(reader), devices=4).collectives
    assert found.kind == kind


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("ROOT %o = f32[25]{0} dynamic-slice(%d, %j), dynamic_slice_sizes={25}", "+slice"),
        ("ROOT %o = f32[100]{0} negate(%d)", ""),
    ],
    ids=["sliced", "read whole"],
)
def test_an_all_reduce_that_another_core_runs_is_judged_by_who_reads_its_end(end, kind):
    text = f"""{HEAD}
%called (a: f32[100]) -> f32[100] {{
  %a = f32[100]{{0}} parameter(0)
  ROOT %r = f32[100]{{0}} all-reduce(%a), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
}}, execution_thread="sparsecore"

%inside (b: f32[100]) -> f32[100] {{
  %b = f32[100]{{0}} parameter(0)
  ROOT %c = f32[100]{{0}} call(%b), to_apply=%called
}}, execution_thread="sparsecore"

ENTRY %main (p: f32[100], j: s32[]) -> f32[25] {{
  %p = f32[100]{{0}} parameter(0)
  %j = s32[] parameter(1)
  %s = ((f32[100]{{0}}), f32[100]{{0}}) async-start(%p), calls=%inside
  %d = f32[100]{{0}} async-done(%s), calls=%inside
  {end}
}}
"""
    (found,) = program_traffic(text, devices=4).collectives
    assert (found.kind, found.wire_bytes) == (f"all-reduce{kind}", 2 * 400 * 3 / 4)


def entry(body):
    return f"""%pick (big: f32[10,100], i: s32[]) -> f32[1,100] {{
  %big = f32[10,100]{{1,0}} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %o = f32[1,100]{{1,0}} dynamic-slice(%big, %i, %z), dynamic_slice_sizes={{1,100}}
}}

%put (big: f32[10,100], row: f32[1,100], i: s32[]) -> f32[10,100] {{
  %big = f32[10,100]{{1,0}} parameter(0)
  %row = f32[1,100]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %o = f32[10,100]{{1,0}} dynamic-update-slice(%big, %row, %i, %z)
}}

ENTRY %main (a: f32[10,100], r: f32[1,100], i: s32[]) -> f32[] {{
  %a = f32[10,100]{{1,0}} parameter(0)
  %r = f32[1,100]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %fast = f32[10,100]{{1,0:S(1)}} custom-call(), custom_call_target="AllocateBuffer"
{body}
}}
"""


@pytest.mark.parametrize(
    ("body", "size"),
    [
        pytest.param("  ROOT %n = f32[10,100]{1,0} negate(%a)", 8000, id="read and write"),
        pytest.param(
            "  ROOT %n = f32[1,100]{1,0} fusion(%a, %i), kind=kLoop, calls=%pick",
            400 + 400 + 4,
            id="a fusion that slices",
        ),
        pytest.param(
            "  ROOT %n = f32[10,100]{1,0} fusion(%a, %r, %i), kind=kLoop, calls=%put",
            400 + 4 + 2 * 400,
            id="a fusion that updates in place",
        ),
        pytest.param("  ROOT %n = f32[10,100]{1,0:S(1)} negate(%fast)", 0, id="not in HBM"),
        pytest.param(
            "  ROOT %n = f32[1,100]{1,0} dynamic-slice(%a, %i, %i)", 800, id="a slice by itself"
        ),
    ],
)
def test_hbm_bytes(body, size):
    assert program_traffic(entry(body), devices=1).hbm_bytes == size


def test_kernels_are_counted_apart():
    body = '  ROOT %k = f32[10,100]{1,0} custom-call(%a, %r), custom_call_target="tpu_custom_call"'
    traffic = program_traffic(entry(body), devices=1)
    assert (traffic.hbm_bytes, traffic.kernel_bytes) == (0, 8400)


@pytest.mark.parametrize("trips", [1.0, 10.0])
def test_a_loop_whose_count_the_text_does_not_tell(trips):
    def f(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: jnp.sin(x) @ x, x)

    compiled = jax.jit(f).lower(jnp.ones((64, 64)), jnp.int32(3)).compile()
    traffic = program_traffic(compiled.as_text(), devices=1, dynamic_trips=trips)
    assert traffic.dynamic_loops == 1
    body = 64 * 64 * 4
    assert traffic.hbm_bytes >= trips * 3 * body
    assert traffic.hbm_bytes <= trips * 8 * body + 16 * body


def test_a_program_compiled_here():
    """Four devices, five layers: five gathers of the layer's weights forward, five backward."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("f",))
    layers, width = 5, 32

    def local(w, x):
        def loss(w):
            @jax.checkpoint
            def layer(x, w):
                return jnp.tanh(x @ jax.lax.all_gather(w, "f", axis=0, tiled=True)), None

            return jnp.sum(jax.lax.scan(layer, x, w)[0] ** 2)

        return jax.grad(loss)(w)

    spec = PartitionSpec(None, "f")
    function = jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(spec, PartitionSpec("f")), out_specs=spec, check_vma=False
        )
    )
    w = jax.ShapeDtypeStruct((layers, width, width), "float32", sharding=NamedSharding(mesh, spec))
    x = jax.ShapeDtypeStruct(
        (16, width), "float32", sharding=NamedSharding(mesh, PartitionSpec("f"))
    )
    traffic = program_traffic(function.lower(w, x).compile().as_text(), devices=4)
    matrix = width * width * 4
    found = by_kind(traffic)
    assert found["all-gather", 4] == (2 * layers, 2 * layers * matrix)
    assert found["reduce-scatter", 4] == (layers, layers * matrix)
