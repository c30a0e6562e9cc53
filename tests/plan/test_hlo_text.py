"""Shapes, instructions and loop counts read from HLO text."""

import pytest

from polaris_jax.plan.hlo import loop_trips
from polaris_jax.plan.hlo_text import Shape, parse_module, parse_shapes

LOOP = """
%cond (p: (s32[], s32[])) -> pred[] {{
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
{condition}
}}

%body (q: (s32[], s32[])) -> (s32[], s32[]) {{
  ROOT %q = (s32[], s32[]) parameter(0)
}}

ENTRY %main (a: s32[]) -> (s32[], s32[]) {{
  %a = s32[] parameter(0)
  %zero = s32[] constant({start})
  %seven = s32[] constant(7)
  %t = (s32[], s32[]) tuple(%zero, {second})
  ROOT %w = (s32[], s32[]) while(%t), condition=%cond, body=%body{note}
}}
"""
PLAIN = """  %n = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %n), direction=LT"""
CARRIED = """  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT"""
EARLY = """  %n = s32[] constant(9)
  %m = s32[] get-tuple-element(%p), index=1
  %lt = pred[] compare(%i, %n), direction=LT
  %ge = pred[] compare(%m, %n), direction=GE
  ROOT %both = pred[] and(%lt, %ge)"""


def trips_of(condition, *, start=0, second="%seven", note=""):
    text = LOOP.format(condition=condition, start=start, second=second, note=note)
    module = parse_module(text)
    main = module.computations[module.entry]
    trips = loop_trips(module, main, main.by_name["w"])
    return trips.count, trips.is_bound


@pytest.mark.parametrize(
    ("condition", "given", "expected"),
    [
        pytest.param(PLAIN, {}, (9, False), id="constant in the condition"),
        pytest.param(PLAIN, {"start": 4}, (5, False), id="counting from 4"),
        pytest.param(CARRIED, {}, (7, False), id="constant carried in"),
        pytest.param(CARRIED, {"second": "%a"}, (None, False), id="known at run time only"),
        pytest.param(EARLY, {}, (9, True), id="may end early"),
        pytest.param(
            CARRIED,
            {"second": "%a", "note": ', backend_config={"known_trip_count":{"n":"36"}}'},
            (36, False),
            id="XLA's own note",
        ),
    ],
)
def test_how_often_a_loop_runs(condition, given, expected):
    assert trips_of(condition, **given) == expected


def test_a_condition_inside_a_fusion_is_followed():
    text = LOOP.format(
        condition="""  %n = s32[] constant(12)
  ROOT %f = pred[] fusion(%i, %n), kind=kLoop, calls=%less""",
        start=0,
        second="%seven",
        note="",
    )
    less = """%less (x: s32[], y: s32[]) -> pred[] {
  %x = s32[] parameter(0)
  %y = s32[] parameter(1)
  ROOT %lt = pred[] compare(%x, %y), direction=LT
}
"""
    module = parse_module(less + text)
    main = module.computations[module.entry]
    assert loop_trips(module, main, main.by_name["w"]).count == 12


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("f32[]", [Shape("f32", ())]),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", [Shape("bf16", (8, 128), 1)]),
        ("(s32[], /*index=1*/pred[3]{0})", [Shape("s32", ()), Shape("pred", (3,))]),
    ],
)
def test_shapes_with_their_memory_space(text, shapes):
    assert list(parse_shapes(text)) == shapes


@pytest.mark.parametrize(
    ("shape", "size"),
    [(Shape("bf16", (3, 5)), 30), (Shape("s4", (3,)), 2), (Shape("f32", ()), 4)],
)
def test_bytes_of_a_shape(shape, size):
    assert shape.bytes == size


def test_an_attribute_of_several_lines_does_not_end_a_computation():
    """As the metadata of a Pallas kernel is written."""
    text = """ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %k = f32[2]{0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={
"xprof_metadata":"{}"
}}, metadata={op_name="kernel"}
  ROOT %n = f32[2]{0} negate(%k)
}, execution_thread="main"
"""
    module = parse_module(text)
    assert [i.opcode for i in module.computations["main"].instructions] == [
        "parameter",
        "custom-call",
        "negate",
    ]


def test_a_computation_read_in_part_is_refused():
    text = "ENTRY %main (a: f32[2]) -> f32[2] {\n  %a = f32[2]{0} parameter(0)\n}\n"
    with pytest.raises(ValueError, match="%main: no ROOT"):
        parse_module(text)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="without an ENTRY"):
        parse_module("HloModule nothing")
