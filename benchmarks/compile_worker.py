"""Compiles one program for a device that is not here, in a process of its own, and says what the
compiler makes of it.

Reads a `Compilation` as JSON from its first argument. The answer is a line of JSON that starts with
MARK.
"""

import importlib.metadata
import json
import sys
import time

from benchmarks import compile_programs, flops, sharding, topologies
from benchmarks.compile_programs import MARK, Compilation, NotSupportedError
from benchmarks.hlo import Program

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "keras", "keras-hub")


def compile_for(request, keep=None):
    """The row of a request, without what names it."""
    topology = topologies.parse(request.topology)
    described = topologies.devices(topology)
    rows = [
        _compiled(model, request, topology, described, keep)
        for model in compile_programs.models(request)
    ]
    price = "cycles" if rows[0]["cycles"] is not None else "bytes_accessed"
    best = min(rows, key=lambda row: row[price])
    if len(rows) > 1:
        best["forms"] = {row["form"]: row[price] for row in rows}
    return best


def _compiled(model, request, topology, described, keep):
    import jax

    step = compile_programs.step(model, request)
    mesh = topologies.parse_mesh(request.mesh, topology)
    place, options = sharding.placement(mesh, step, described)
    arguments = jax.tree.map(
        lambda leaf, alike: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(alike)),
        step.arguments,
        step.alike,
    )
    started = time.perf_counter()
    with topologies.traced_for(described.devices), sharding.distribution(mesh):
        traced = jax.jit(step.function, donate_argnums=step.donated, **options).trace(*arguments)
        lowered = traced.lower(lowering_platforms=(topology.chip.platform,))
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    if keep:
        with open(keep, "w", encoding="utf-8") as stream:
            stream.write(text)
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    program = Program(text)
    loops, unknown = program.loops
    products = _products(request, model)
    chip = topology.chip
    on_tpu = chip.platform == "tpu"
    # What is donated is in the arguments and in the outputs, once in memory.
    held = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return {
        "what": model.what,
        "form": model.form,
        "compile_seconds": round(seconds, 1),
        # XLA's GPU compiler writes no estimates that library calls are part of.
        "cycles": program.cycles if on_tpu else None,
        "product_cycles": program.product_cycles if on_tpu else None,
        "products_alone_cycles": round(
            products / topology.num_chips_of(mesh) / chip.tflop_per_second * chip.clock_ghz / 1e3
        )
        if chip.clock_ghz
        else None,
        "copies": program.copies("images"),
        "dearest": program.dearest(8),
        "operations": program.counts(),
        "loops": loops,
        "loops_of_unknown_length": unknown,
        # The compiler counts what is in a loop once.
        "bytes_accessed": program.bytes_accessed
        if loops
        else costs.get("bytes accessed", program.bytes_accessed),
        "flops": costs.get("flops"),
        "product_flops": products,
        **(sharding.facts(program, mesh, request) if mesh else {}),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "held_bytes": held,
        "fits": held <= chip.memory_gib * 2**30,
    }


def _products(request, model):
    """FLOPs of the model's matrix products in a step, of all chips together."""
    heads = 2 if model.config["use_distillation_token"] else 1
    count = flops.training_flops if request.mode == "training" else flops.forward_flops
    return request.batch_size * count(model.config, 1000, heads)


def versions():
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main():
    request, keep = (
        Compilation(**json.loads(sys.argv[1])),
        sys.argv[2] if len(sys.argv) > 2 else None,
    )
    try:
        row = {"status": "compiled", **compile_for(request, keep)}
    except NotSupportedError as error:
        row = {"status": "not supported", "message": str(error)}
    except ImportError as error:
        row = {"status": "not installed", "message": str(error)}
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        full = any(
            word in words for word in ("RESOURCE_EXHAUSTED", "Ran out of memory", "out of memory")
        )
        row = {"status": "does not fit" if full else "failed", "message": words[:1000]}
    print(f"\n{MARK}{json.dumps({**row, 'versions': versions()})}", flush=True)


if __name__ == "__main__":
    main()
