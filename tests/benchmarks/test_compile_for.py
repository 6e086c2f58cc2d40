"""Reading compiled programs, and the command that compiles for other devices."""

import dataclasses
import importlib.util
import json
import textwrap

import keras
import numpy as np
import pytest

from benchmarks import compile_programs, hlo, results, topologies
from benchmarks.compile_programs import Compilation
from tests.benchmarks.test_run import run
from tests.helpers import numpy, randomize, tiny_classifier

# As libtpu writes them, without most of what stands in a line's `backend_config`.
PROGRAM = """
HloModule jit_infer, is_scheduled=true

%fused_product (p0: bf16[8,4], p1: bf16[4,6], p2: bf16[6]) -> bf16[8,6] {
  %p0 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[4,6]{1,0} parameter(1)
  %p2 = bf16[6]{0} parameter(2)
  %convolution.1 = bf16[8,6]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
  %broadcast.1 = bf16[8,6]{1,0} broadcast(%p2), dimensions={1}
  ROOT %add.1 = bf16[8,6]{1,0} add(%convolution.1, %broadcast.1)
}

%fused_move (p3: bf16[8,6]) -> bf16[6,8] {
  %p3 = bf16[8,6]{1,0} parameter(0)
  ROOT %transpose.1 = bf16[6,8]{0,1} transpose(%p3), dimensions={1,0}
}

ENTRY %main.9 (trained_0_.1: bf16[4,6], trained_1_.1: bf16[6], images.1: bf16[8,4]) -> (bf16[6,8], f32[]) {
  %trained_0_.1 = bf16[4,6]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="trained[0]"}
  %trained_1_.1 = bf16[6]{0} parameter(1), metadata={op_name="trained[1]"}
  %images.1 = bf16[8,4]{1,0} parameter(2), metadata={op_name="images"}
  %copy.1 = bf16[8,4]{0,1:T(8,128)(2,1)S(1)} copy(%images.1), backend_config={"window_config":{"estimated_cycles":"30"}}
  %copy.2 = bf16[4,6]{0,1} copy(%trained_0_.1), backend_config={"window_config":{"estimated_cycles":"20"}}
  %fusion.1 = bf16[8,6]{1,0} fusion(%copy.1, %copy.2, /*index=2*/%trained_1_.1), kind=kOutput, calls=%fused_product, \
metadata={op_name="jit(infer)/block_0/mlp/dot_general" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"500"}}
  %reshape.1 = bf16[2,4,6]{2,1,0} reshape(%fusion.1), metadata={op_name="jit(infer)/block_0/mlp/reshape"}
  %bitcast.1 = bf16[8,6]{1,0} bitcast(%reshape.1)
  %fusion.2 = (bf16[6,8]{0,1:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}) fusion(%bitcast.1), kind=kLoop, calls=%fused_move, \
metadata={op_name="jit(infer)/block_11/attention/split"}, backend_config={"window_config":{"estimated_cycles":"50"}}
  ROOT %tuple.1 = (bf16[6,8]{0,1}, f32[]) tuple(%fusion.2)
}
"""

LOOP = """
%body (state: (s32[], f32[16,2])) -> (s32[], f32[16,2]) {
  %state = (s32[], f32[16,2]{1,0}) parameter(0)
  %part = f32[16,2]{1,0} get-tuple-element(%state), index=1
  %all-reduce.1 = f32[16,2]{1,0} all-reduce(%part), replica_groups={{0,1}}, to_apply=%sum
  %multiply.1 = f32[16,2]{1,0} multiply(%all-reduce.1, %part), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %tuple.2 = (s32[], f32[16,2]{1,0}) tuple(%part, %multiply.1)
}

%condition (counted: (s32[], f32[16,2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %counted = (s32[], f32[16,2]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%counted), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%a, %b)
}

ENTRY %main (param.1: f32[16,2]) -> (s32[], f32[16,2]) {
  %param.1 = f32[16,2]{1,0} parameter(0), metadata={op_name="images"}
  %permute = (f32[16,2]{1,0}, f32[16,2]{1,0}, u32[]) collective-permute-start(%param.1), source_target_pairs={{0,1}}
  %permuted = f32[16,2]{1,0} collective-permute-done(%permute)
  %gathered = bf16[32,2]{1,0} all-gather(%param.1), dimensions={0}
  %initial = (s32[], f32[16,2]{1,0}) tuple(%permuted)
  ROOT %loop = (s32[], f32[16,2]{1,0}) while(%initial), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
}
"""

GPU = """
ENTRY %main (images.1: bf16[8,4]) -> bf16[8,4] {
  %images.1 = bf16[8,4]{1,0} parameter(0), metadata={op_name="images"}
  %cublas-gemm.1 = (bf16[8,4]{1,0}, s8[64]{0}) custom-call(%images.1, %images.1), custom_call_target="__cublas$lt$matmul"
  ROOT %got = bf16[8,4]{1,0} get-tuple-element(%cublas-gemm.1), index=0
}
"""


def test_cycles_products_and_copies():
    program = hlo.Program(PROGRAM)
    assert program.cycles == 600
    assert program.product_cycles == 500
    # The images' copy, the reshape into other tiles, which has no estimate, and the fusion that
    # only transposes; not the weight's copy.
    assert program.copies("images") == {
        "count": 3,
        "cycles": 80,
        "bytes": 2 * (32 + 48 + 48),
        "unpriced": 1,
        "unpriced_bytes": 96,
    }
    assert program.counts() == {"copy": 2, "fusion": 2, "reshape": 1}
    assert program.loops == (0, 0)
    assert program.collectives() == {}
    assert program.dearest(2) == [
        {"layer": "block_*/mlp/dot_general", "count": 1, "cycles": 500},
        {"layer": "copy", "count": 2, "cycles": 50},
    ]
    # What is read and written: two copies, the product and its bias, the reshape, and the transpose
    # with its scalar.
    assert program.bytes_accessed == 2 * (64 + 48) + (64 + 48 + 12 + 96) + 2 * 96 + (96 + 96 + 4)


def test_loops_count_as_often_as_they_run():
    program = hlo.Program(LOOP)
    assert program.cycles == 12 * 7
    assert program.loops == (1, 0)
    assert program.collectives() == {
        "collective-permute": {"count": 1, "bytes": 128},
        "all-gather": {"count": 1, "bytes": 128},
        "all-reduce": {"count": 12, "bytes": 12 * 128},
    }
    assert program.arrays_with(32) == [("", "bf16", (32, 2))]
    # The TPU's compiler does not say how often: it is the constant that the counter is compared
    # with.
    unsaid = LOOP.replace('{"known_trip_count":{"n":"12"}}', "{}")
    assert hlo.Program(unsaid).loops == (1, 0)
    assert hlo.Program(unsaid).cycles == 12 * 7
    assert hlo.Program(unsaid.replace("constant(12)", "parameter(1)")).loops == (1, 1)


def test_library_calls_are_matrix_products():
    program = hlo.Program(GPU)
    assert program.counts() == {"custom-call __cublas$lt$matmul": 1}
    assert program.copies("images")["count"] == 0


@pytest.mark.parametrize(
    ("op_name", "path"),
    [
        ("jit(train)/transpose(jvp(block_3))/mlp/dot_general", "grad block_*/mlp/dot_general"),
        (
            "jit(infer)/block_11/attention_norm/jit(_var)/reduce_sum",
            "block_*/attention_norm/reduce_sum",
        ),
        (
            "jit(infer)/encoder/block_0/ln_1/mul;jit(infer)/encoder/block_0/ln_1/add",
            "encoder/block_*/ln_*/mul",
        ),
        ("images", "images"),
        ("", ""),
    ],
)
def test_layers_of_all_blocks_have_one_name(op_name, path):
    assert hlo.layer_path(op_name) == path


def test_error_on_other_text():
    with pytest.raises(ValueError, match="with a line that starts with ENTRY"):
        hlo.Program("HloModule nothing")


@pytest.mark.process
@pytest.mark.tpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v9:1x1"), "--topology must be a chip (v4, v5e, v5p, v6e, h100)"),
        (("--topology", "v5e"), "--topology: v5e has 2 sides, such as v5e:2x2. Received: v5e"),
        (
            ("--topology", "v4:2x2"),
            "--topology: v4 has 3 sides, such as v4:2x2x1. Received: v4:2x2",
        ),
        (
            ("--topology", "h100:1x1"),
            "--topology: h100 is one GPU and has no layout. Received: h100:1x1",
        ),
        (
            ("--mesh", "batch=4"),
            "--mesh must use all 1 chips of v5e:1x1. Received: batch=4, which are 4",
        ),
        (
            ("--mesh", "4"),
            "--mesh must have the axes batch or model, such as batch=32,model=8 or batch=256. "
            "Received: 4",
        ),
        (
            ("--subject", "torch"),
            "--subject must list one or more of keras_deit, keras_hub, jax. Received: torch",
        ),
        (
            ("--batch_size", "none"),
            "--batch_size must be a list of integers from 1, such as 8,128. Received: none",
        ),
    ],
)
def test_errors_name_the_flag(arguments, message, tmp_path):
    result = run("compile_for", "--output", tmp_path / "rows.jsonl", *arguments)
    assert result.returncode != 0
    assert message in " ".join((result.stdout + result.stderr).split())


def request(**changes):
    plain = Compilation(
        topology="v5e:1x1",
        mesh="",
        subject="keras_deit",
        preset="deit_tiny_distilled_patch16_224",
        image_size=32,
        num_layers=2,
        num_merged_tokens=0,
        remat=False,
        mode="inference",
        dtype="bfloat16",
        batch_size=8,
    )
    return dataclasses.replace(plain, **changes)


TINY = (
    "--preset",
    "deit_tiny_distilled_patch16_224",
    "--image_size",
    32,
    "--num_layers",
    2,
    "--batch_size",
    8,
)


def compiled_row(request, **changes):
    return {
        **dataclasses.asdict(request),
        "status": "compiled",
        "form": "",
        "cycles": 100,
        "product_cycles": 50,
        "copies": {"count": 1, "cycles": 10, "bytes": 0, "unpriced": 0, "unpriced_bytes": 0},
        "operations": {"fusion": 2, "custom-call __cublas$lt$matmul": 3},
        "bytes_accessed": 1e9,
        "temporary_bytes": 2**20,
        "versions": {"jax": "1.0"},
        **changes,
    }


@pytest.mark.process
@pytest.mark.tpu
def test_existing_rows_are_skipped(tmp_path):
    output = tmp_path / "rows.jsonl"
    results.append(output, [compiled_row(request())])
    before = output.read_bytes()
    result = run("compile_for", "--output", output, *TINY)
    assert result.returncode == 0, result.stderr
    assert f"keras_deit: {output} contains it" in result.stdout
    assert output.read_bytes() == before


@pytest.mark.process
@pytest.mark.tpu
def test_rows_of_failures(tmp_path):
    """A peer without the mode is a row, and so is a missing library."""
    output = tmp_path / "rows.jsonl"
    arguments = ("--subject", "keras_hub", "--mode", "attention", "--output", output)
    result = run("compile_for", *TINY, *arguments)
    assert result.returncode == 0, result.stderr
    (row,) = compile_programs.read(output)
    assert row["status"] in ("not supported", "not installed")
    assert "Estimates of the compiler, not measured times." in result.stdout


@pytest.mark.backend
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("form", ["slices", "split", "heads"])
@pytest.mark.parametrize(
    "config",
    [
        {"use_distillation_token": True},
        {
            "use_distillation_token": False,
            "position_scope": "patches",
            "layer_scale_init_value": 1e-4,
        },
    ],
)
def test_plain_jax_has_the_same_numbers(config, form, rng):
    """The plain JAX model computes the same as the Keras model with the same weights."""
    from benchmarks.subjects import plain_jax

    classifier = randomize(tiny_classifier(config), rng)
    weights = {
        variable.path: np.asarray(numpy(variable)) for variable in classifier.trainable_variables
    }
    images = rng.normal(size=(4, *classifier.backbone.image_shape)).astype("float32")
    logits, scores = plain_jax.classify(
        weights, images, classifier.backbone.get_config(), form, return_attention_scores=True
    )
    np.testing.assert_allclose(logits, numpy(classifier(images)), atol=1e-5)
    np.testing.assert_allclose(
        plain_jax.classify(weights, images, classifier.backbone.get_config(), form),
        logits,
        atol=1e-5,
    )
    expected = keras.Model(classifier.input, classifier.outputs_with_attention_scores)(images)[
        "attention_scores"
    ]
    for name, array in scores.items():
        np.testing.assert_allclose(array, numpy(expected[name]), atol=1e-5)


@pytest.mark.tpu
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='libtpu is not installed: pip install ".[tpu]"',
)
def test_a_tpu_program(tmp_path):
    output = tmp_path / "rows.jsonl"
    result = run(
        "compile_for",
        *TINY,
        "--subject",
        "keras_deit,jax",
        "--output",
        output,
        "--hlo",
        tmp_path / "hlo",
    )
    assert result.returncode == 0, result.stderr
    ours, plain = compile_programs.read(output)
    assert ours["status"] == plain["status"] == "compiled", (
        ours.get("message"),
        plain.get("message"),
    )
    assert 0 < ours["product_cycles"] < ours["cycles"]
    assert ours["fits"]
    assert ours["dearest"][0]["cycles"] <= ours["cycles"]
    assert any(entry["layer"].startswith("block_*/") for entry in ours["dearest"])
    assert set(plain["forms"]) == {"slices", "split", "heads"}
    assert plain["cycles"] == min(plain["forms"].values())
    assert len(list((tmp_path / "hlo").iterdir())) == 2


@pytest.mark.process
def test_tables(tmp_path):
    rows = [
        compiled_row(request()),
        compiled_row(request(subject="keras_hub"), cycles=150),
        compiled_row(request(subject="jax"), cycles=80, form="slices"),
        {
            **dataclasses.asdict(request(subject="keras_hub", mode="attention")),
            "status": "not supported",
            "message": "no scores",
        },
        compiled_row(request(mode="attention")),
        compiled_row(request(topology="h100"), cycles=None, product_cycles=None),
        compiled_row(
            request(topology="v5e:2x2", mesh="batch=4", mode="training", dtype="mixed_bfloat16"),
            held_bytes=2**30,
            fits=True,
            collectives={"all-reduce": {"count": 2, "bytes": 2**21}},
            collective_bytes=2**21,
            whole_batch_arrays=0,
            rematerializations=1,
        ),
        {
            **dataclasses.asdict(request(topology="v5e:2x2", mesh="batch=2,model=2")),
            "status": "does not fit",
            "message": "Used 20G of 15.75G hbm",
        },
    ]
    source, markdown, table = tmp_path / "rows.jsonl", tmp_path / "page.md", tmp_path / "rows.csv"
    results.append(source, rows)
    markdown.write_text("# Page\n<!-- compiled -->\nold\n<!-- end of compiled -->\nafter\n")
    result = run("compile_report", "--input", source, "--markdown", markdown, "--csv", table)
    assert result.returncode == 0, result.stderr
    text = markdown.read_text()
    assert text.startswith("# Page\n")
    assert text.endswith("after\n")
    assert text.count("the compiler's estimates, not measured times") == 3
    name = "deit_tiny_distilled_patch16_224 at 32 of 2 blocks"
    for line in (
        f"| {name} | inference | bfloat16 | 8 | 0.00 | 0.00 | 0.00 (slices) | 1.50 | 1.25 | 1.0, "
        "1.0, 1.0 | 1, 1, 1 | 10%, 50% |",
        f"| {name} | attention | bfloat16 | 8 | 0.00 | not supported: no scores |  |  |  | 1.0 | 1 "
        "| 10%, 50% |",
        f"| {name} | inference | bfloat16 | 8 | keras_deit | 2 | 3 `__cublas$lt$matmul` | 1 (0) | "
        "1 |",
        f"| {name} | v5e:2x2 | 4 | batch=4 | keras_deit | 8 | 1.0 of 16 | yes | 2 all-reduce | 2 | "
        "0 | 1 |",
        f"| {name} | v5e:2x2 | 4 | batch=2,model=2 | keras_deit | 8 |  | no | does not fit: Used "
        "20G of 15.75G hbm |  |  |  |",
    ):
        assert line in text
    assert len(table.read_text().splitlines()) == 1 + len(rows)


@pytest.mark.process
def test_error_without_rows(tmp_path):
    result = run("compile_report", "--input", tmp_path / "none.jsonl")
    assert result.returncode != 0
    assert "has no rows. Measure some: python -m benchmarks.compile_for" in result.stderr


def test_layouts():
    topology = topologies.parse("v5e:16x16")
    assert topology.num_chips == 256
    assert topologies.parse_mesh("batch=32,model=8", topology) == {"batch": 32, "model": 8}
    assert json.dumps(topologies.environment(topology))
    assert textwrap.dedent(topologies.TARGET_CONFIGS["h100"])
