"""Reading compiled programs; the snippets are shortened from those of small
functions."""

import pytest

from pomp_jax.rooms.benchmark import hlo

SIZES = {"data": 2, "class": 2}
# For TPU v5e 2x2 by libtpu 0.0.42.1: a loop with a sum over the class axis, a gather of
# rows over it, a product, and a sum of its columns over the data axis.
TPU = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias) }

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %b = bf16[]{:T(256)} parameter(1)
  %a = bf16[]{:T(256)} parameter(0)
  ROOT %add.2 = bf16[]{:T(256)} add(%a, %b), backend_config={"aliasing_operands":{"lists":[]}}
}

%body (param: (s32[], bf16[16,256], s32[])) -> (s32[], bf16[16,256], s32[]) {
  %param = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %part = bf16[]{:T(256)} slice(%param), backend_config={"w":{"estimated_cycles":"1829"}}
  %psum = bf16[]{:T(256)} all-reduce(%part), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %grown = bf16[16,256]{1,0} fusion(%psum), calls=%loop_fusion, b={"estimated_cycles":"2000"}
  ROOT %tuple = (s32[], bf16[16,256]{1,0}, s32[]) tuple(%part, %grown, %part)
}

%condition (param.1: (s32[], bf16[16,256], s32[])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(7)
  %param.1 = (s32[]{:T(128)}, bf16[16,256]{1,0}, s32[]{:T(128)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%number, %constant.4), direction=LT
}

%loop_fusion (p: bf16[]) -> bf16[16,256] {
  %p = bf16[] parameter(0)
  ROOT %mul.13 = bf16[16,256]{1,0:T(8,128)(2,1)} broadcast(%p), dimensions={}
}

%product_fusion (x: bf16[32,256], w: bf16[256,256]) -> f32[256] {
  %x = bf16[32,256]{1,0} parameter(0)
  %w = bf16[256,256]{1,0} parameter(1)
  %convolution.1 = bf16[32,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %reduced = f32[256]{0} reduce(%convolution.1), dimensions={0}, to_apply=%sum
}

ENTRY %main.3_spmd (w.1: bf16[256,256], x.1: bf16[16,256]) -> f32[256] {
  %w.1 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(0)
  %x.1 = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (s32[], bf16[16,256]{1,0}, /*index=2*/s32[]) tuple(%x.1, %x.1, %x.1)
  %while.7 = (s32[], bf16[16,256]{1,0}, s32[]) while(%start), condition=%condition, body=%body
  %gather.1 = (bf16[16,256]{1,0}, bf16[32,256]{1,0}) all-gather-start(%w), replica_groups=[2,2]<=[4]
  %gathered = bf16[32,256]{1,0} all-gather-done(%gather.1)
  %fusion.2 = f32[256]{0} fusion(%w.1), calls=%product_fusion, b={"estimated_cycles":"5000"}
  ROOT %psum.2 = f32[256]{0} all-reduce(%fusion.2), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%s
}
"""


def test_cycles_are_of_all_trips():
  found = hlo.cycles(hlo.parse(TPU))
  loops = 7 * (1829 + 2000)
  assert found == hlo.Cycles(total=loops + 5000, products=5000, loops=loops, unknown=0)


def test_without_estimates_there_are_no_cycles():
  assert hlo.cycles(hlo.parse(TPU.replace("estimated_cycles", "other"))) is None


@pytest.mark.parametrize(
  ("change", "trips"),
  [
    (
      (
        "condition=%condition",
        'condition=%none, backend={"known_trip_count":{"n":"12"}}',
      ),
      12,
    ),
    # The bound is carried by the loop, or not the only number.
    (("constant(7)", "parameter(1)"), None),
    (("direction=LT", "direction=NE"), None),
  ],
)
def test_trips_of_a_loop(change, trips):
  program = hlo.parse(TPU.replace(*change))
  (loop,) = (
    one for one in program.computations[program.entry] if one.operation == "while"
  )
  assert program.trips(loop) == trips
  found = hlo.cycles(program)
  assert (found.unknown, found.total) == (
    trips is None,
    (trips or 1) * (1829 + 2000) + 5000,
  )


def test_collectives_by_axis():
  found = hlo.collectives(hlo.parse(TPU), SIZES)
  assert found == [
    hlo.Collective("all-gather", "class", 1, 32 * 256 * 2),
    hlo.Collective("all-reduce", "class", 7, 7 * 2),
    hlo.Collective("all-reduce", "data", 1, 256 * 4),
  ]


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("replica_groups={{0,1,2,3,4,5,6,7}}", "data x class"),
    ("replica_groups={}", "data x class"),
    ("replica_groups={{0,2,4,6},{1,3,5,7}}", "data"),
    ("replica_groups=[4,2]<=[8]", "class"),
    ("replica_groups={{0,1,2,3},{4,5,6,7}}", "groups of 4"),
    ("source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}", "class"),
  ],
)
def test_axes_of_groups(groups, axes):
  text = (
    "ENTRY %main (x: f32[2]) -> f32[2] {\n"
    f"  ROOT %a = f32[2]{{0}} all-reduce(%x), {groups}\n}}"
  )
  (found,) = hlo.collectives(hlo.parse(text), {"data": 4, "class": 2})
  assert (found.axes, found.n_bytes) == (axes, 8)


def test_a_collective_in_a_fusion_or_an_asynchronous_call_is_found():
  text = TPU.replace(
    "ROOT %mul.13 = bf16[16,256]{1,0:T(8,128)(2,1)} broadcast(%p), dimensions={}",
    "ROOT %mul.13 = bf16[16,256]{1,0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}",
  )
  found = {one.kind: one for one in hlo.collectives(hlo.parse(text), SIZES)}
  assert found["reduce-scatter"] == ("reduce-scatter", "class", 7, 7 * 16 * 256 * 2)
  text = text.replace(" fusion(%psum)", " async-start(%psum)")
  assert len(hlo.collectives(hlo.parse(text), SIZES)) == 4


def test_what_goes_to_other_slices():
  """As libtpu 0.0.42.1 compiles one sum over two slices of four chips."""
  network = 'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}'
  text = f"""
ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0}} parameter(0)
  %sum = f32[1024]{{0}} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %send = (f32[1024]{{0}}, u32[], token[]) send(%sum, %start), channel_id=2, {network}
  %recv = (f32[1024]{{0}}, u32[], token[]) recv(%start), channel_id=1, {network}
  ROOT %result = f32[1024]{{0}} get-tuple-element(%recv), index=0
}}
"""
  assert hlo.collectives(hlo.parse(text), {"data": 4, "class": 1}) == [
    hlo.Collective("all-reduce", "data", 1, 4096),
    hlo.Collective("all-reduce", hlo.NETWORK, 1, 4096),
  ]
  assert hlo.findings(text).callbacks == 0


@pytest.mark.parametrize(
  ("kind", "operation", "n_bytes"),
  [
    ("(f32[24,8]{1,0}, f32[12,8]{1,0})", "reduce-scatter-start", 12 * 8 * 4),
    ("(f32[4]{0}, f32[4]{0}, u32[], u32[])", "collective-permute-start", 16),
    ("(f32[4]{0}, pred[3]{0})", "all-reduce", 19),
    ("s4[6]{0}", "all-gather", 6),
  ],
)
def test_bytes_of_what_arrives(kind, operation, n_bytes):
  text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %a = {kind} {operation}(%x), x=1\n}}"
  (found,) = hlo.collectives(hlo.parse(text), SIZES)
  assert found.n_bytes == n_bytes


def test_products_of_libraries_are_found():
  line = "  %g = (bf16[4,8]{1,0}, s8[33]{0}) custom-call(%w), custom_call_target="
  text = TPU.replace("  %start =", f'{line}"__cublas$gemm"\n  %start =')
  assert hlo.findings(text).products == {"bf16": 2}


def test_findings():
  assert hlo.findings(TPU) == hlo.Findings(0, 0, 0, 1, {"bf16": 1})
  lines = (
    "  %wide = f64[2]{0} convert(%x.1)",
    '  %told = f32[] custom-call(%x.1), custom_call_target="xla_ffi_python_cpu_callback"',
    '  %s = f32[2] scatter(%x.1), metadata={op_name="jit(f)/transpose(jvp())/scatter-add"}',
    '  %t = f32[2] scatter(%x.1), metadata={op_name="jit(f)/jvp()/scatter"}',
    "",
  )
  text = TPU.replace("  %start =", "\n".join(lines) + "  %start =")
  assert hlo.findings(text) == hlo.Findings(1, 1, 1, 1, {"bf16": 1})
