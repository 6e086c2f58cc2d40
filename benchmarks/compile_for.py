"""Compiles keras_deit and its peers for a TPU or GPU without having one.

    pip install ".[tpu]" keras-hub
    python -m benchmarks.compile_for --topology v5e:1x1 --batch_size 8,128 --output rows.jsonl \\
        --preset deit_small_distilled_patch16_224 --subject keras_deit,keras_hub

Adds a row per program to a file of JSON lines; programs that the file contains are skipped. The
numbers are estimates of the compiler, not measured times. Each program is compiled in its own
process, which takes from 10 seconds to some minutes on two cores.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

from absl import app, flags

from benchmarks import compile_programs, results, topologies
from benchmarks.compile_programs import MARK, Compilation

FLAGS = flags.FLAGS
SUBJECTS = ("keras_deit", "keras_hub", "jax")
DTYPES = ("bfloat16", "mixed_bfloat16", "float32", "float16", "mixed_float16")
SECONDS = 3600
# The partitioner's message when it gathers a whole tensor on each chip to split it differently.
REMATERIALIZATION = "nvoluntary full rematerialization"


def define_flags():
    flags.DEFINE_list("topology", ["v5e:1x1"], f"Devices to compile for: {topologies.EXAMPLES}.")
    flags.DEFINE_multi_string(
        "mesh",
        None,
        "Mesh axes over the chips of the topology, such as batch=32,model=8. Default: one chip.",
    )
    flags.DEFINE_list(
        "preset",
        ["deit_small_distilled_patch16_224"],
        "Names of published presets; their weights are not needed.",
    )
    flags.DEFINE_list("image_size", None, "Image sizes in pixels. Default: the preset's.")
    flags.DEFINE_list("num_layers", None, "Numbers of transformer blocks. Default: the preset's.")
    flags.DEFINE_list("num_merged_tokens", ["0"], "Numbers of tokens to remove per block.")
    flags.DEFINE_list(
        "variant",
        [""],
        "Other parts than the preset's, some of: "
        f"{', '.join(filter(None, compile_programs.VARIANTS))}. Default: the preset itself.",
    )
    flags.DEFINE_bool("remat", False, "Whether training uses gradient checkpointing.")
    flags.DEFINE_list("subject", ["keras_deit"], f"One or more of {', '.join(SUBJECTS)}.")
    flags.DEFINE_list("mode", ["inference"], f"One or more of {', '.join(compile_programs.MODES)}.")
    flags.DEFINE_list(
        "dtype",
        ["bfloat16", "mixed_bfloat16"],
        "Keras dtype policies. Training uses the mixed ones and float32, whose weights are "
        "float32; inference uses the others.",
    )
    flags.DEFINE_list("batch_size", ["128"], "Images per step, over all chips.")
    flags.DEFINE_string("output", "compiled.jsonl", "File to add rows to.")
    flags.DEFINE_string(
        "hlo", None, "Folder for the text of the compiled programs. Default: not kept."
    )


def requests():
    numbers = {
        name: [int(value) for value in getattr(FLAGS, name) or []] or [None]
        for name in ("image_size", "num_layers", "num_merged_tokens", "batch_size")
    }
    for (
        topology,
        mesh,
        preset,
        image_size,
        num_layers,
        merged,
        mode,
        dtype,
        batch_size,
        subject,
        variant,
    ) in itertools.product(
        FLAGS.topology,
        FLAGS.mesh or [""],
        FLAGS.preset,
        numbers["image_size"],
        numbers["num_layers"],
        numbers["num_merged_tokens"],
        FLAGS.mode,
        FLAGS.dtype,
        numbers["batch_size"],
        FLAGS.subject,
        FLAGS.variant,
    ):
        if (mode == "training") == (
            dtype.startswith("mixed_") or dtype == "float32"
        ) or dtype == "float32":
            yield Compilation(
                topology,
                mesh,
                subject,
                preset,
                image_size,
                num_layers,
                merged,
                FLAGS.remat,
                mode,
                dtype,
                batch_size,
                variant,
            )


def compiled(request):
    """Compiles a request in its own process and returns its row."""
    topology = topologies.parse(request.topology)
    command = [
        sys.executable,
        "-m",
        "benchmarks.compile_worker",
        json.dumps(dataclasses.asdict(request)),
    ]
    if FLAGS.hlo:
        os.makedirs(FLAGS.hlo, exist_ok=True)
        name = "_".join(
            str(value) for value in dataclasses.astuple(request) if value not in ("", None, False)
        )
        command.append(os.path.join(FLAGS.hlo, f"{name.replace(':', '-')}.hlo"))
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **topologies.environment(topology)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "message": f"not compiled in {SECONDS} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            row = json.loads(line.removeprefix(MARK))
            return (
                row | {"rematerializations": done.stderr.count(REMATERIALIZATION)}
                if request.mesh
                else row
            )
    last = (done.stderr.strip().splitlines() or [""])[-1]
    killed = " (killed: the machine that compiles is short of memory)" * (done.returncode == -9)
    return {
        "status": "failed",
        "message": f"the process ended with {done.returncode}{killed}: {last}"[:1000],
    }


def main(_):
    check_flags()
    try:
        done = {compile_programs.key(row) for row in compile_programs.read(FLAGS.output)}
    except ValueError as error:
        sys.exit(str(error))
    print("Estimates of the compiler, not measured times.", flush=True)
    for request in requests():
        row = dataclasses.asdict(request)
        if compile_programs.key(row) in done:
            print(f"Skipped {describe(request)}: {FLAGS.output} contains it")
            continue
        row |= compiled(request)
        results.append(FLAGS.output, [row])
        print(f"{describe(request)}: {summary(row)}", flush=True)


def check_flags():
    for name, choices in (
        ("subject", SUBJECTS),
        ("mode", compile_programs.MODES),
        ("dtype", DTYPES),
        ("variant", compile_programs.VARIANTS),
    ):
        for value in getattr(FLAGS, name):
            if value not in choices:
                raise app.UsageError(
                    f"--{name} must list one or more of {', '.join(choices)}. Received: {value}"
                )
    for name, example, least in (
        ("batch_size", "8,128", 1),
        ("image_size", "224,384", 1),
        ("num_layers", "6,12", 1),
        ("num_merged_tokens", "0,13", 0),
    ):
        values = getattr(FLAGS, name) or []
        if not all(value.isdigit() and int(value) >= least for value in values):
            raise app.UsageError(
                f"--{name} must be a list of integers from {least}, such as {example}. Received: "
                f"{','.join(values)}"
            )
    for name in FLAGS.topology:
        try:
            topology = topologies.parse(name)
            for mesh in FLAGS.mesh or []:
                topologies.parse_mesh(mesh, topology)
        except ValueError as error:
            raise app.UsageError(str(error)) from error


def describe(request):
    size = "" if request.image_size is None else f" at {request.image_size}"
    depth = "" if request.num_layers is None else f" of {request.num_layers} blocks"
    merged = f", {request.num_merged_tokens} merged" if request.num_merged_tokens else ""
    remat = ", remat" if request.remat else ""
    variant = f", {request.variant}" if request.variant else ""
    mesh = f" ({request.mesh})" if request.mesh else ""
    return (
        f"{request.topology}{mesh}, {request.preset}{size}{depth}, batch {request.batch_size}, "
        f"{request.mode}, "
        f"{request.dtype}{merged}{remat}{variant}, {request.subject}"
    )


def summary(row):
    if row["status"] != "compiled":
        return f"{row['status']}: {row['message']}"
    if row["cycles"] is None:
        calls = ", ".join(f"{count} {name}" for name, count in row["operations"].items())
        start = f"{calls}; copies {row['copies']['count']}"
    else:
        copies, products = (
            cycles / max(1, row["cycles"])
            for cycles in (row["copies"]["cycles"], row["product_cycles"])
        )
        start = f"{row['cycles'] / 1e6:.2f}M cycles ({copies:.0%} copies, {products:.0%} products)"
    form = f", {row['form']}" if row["form"] else ""
    return (
        f"{start}, {row['bytes_accessed'] / 1e9:.2f} GB, temporary "
        f"{row['temporary_bytes'] / 2**20:.0f} MiB{form}, "
        f"compiled in {row['compile_seconds']:.0f} s"
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
