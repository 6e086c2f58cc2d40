"""Compiles one program for a device that this machine does not have, in its own process.

Reads a `Compilation` as JSON from its first argument. Prints a line that starts with MARK and
continues with JSON: what the compiler says about the program.
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
    """Compiles a request and returns its row, without the key."""
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
    """Compiles one variant of the model and returns what the compiler says about it."""
    mesh = topologies.parse_mesh(request.mesh, topology)
    started = time.perf_counter()
    compiled = _compile(model, request, topology, described, mesh)
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    if keep:
        with open(keep, "w", encoding="utf-8") as stream:
            stream.write(text)
    program, products = Program(text), _products(request, model)
    return {
        "what": model.what,
        "form": model.form,
        "compile_seconds": round(seconds, 1),
        **_cycles(program, topology, products / topology.num_chips_of(mesh)),
        **_operations(program, compiled.cost_analysis() or {}),
        "product_flops": products,
        **(sharding.facts(program, mesh, request) if mesh else {}),
        **_memory(compiled.memory_analysis(), topology.chip),
    }


def _compile(model, request, topology, described, mesh):
    import jax

    step = compile_programs.step(model, request)
    place, options = sharding.placement(mesh, step, described)
    arguments = jax.tree.map(
        lambda leaf, alike: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(alike)),
        step.arguments,
        step.alike,
    )
    with topologies.traced_for(described.devices), sharding.distribution(mesh):
        traced = jax.jit(step.function, donate_argnums=step.donated, **options).trace(*arguments)
        lowered = traced.lower(lowering_platforms=(topology.chip.platform,))
    return lowered.compile()


def _cycles(program, topology, products_per_chip):
    """Estimated cycles. XLA's GPU compiler has no estimates for library calls, so no total."""
    chip = topology.chip
    on_tpu = chip.platform == "tpu"
    alone = None
    if chip.clock_ghz:
        alone = round(products_per_chip / chip.tflop_per_second * chip.clock_ghz / 1e3)
    return {
        "cycles": program.cycles if on_tpu else None,
        "product_cycles": program.product_cycles if on_tpu else None,
        "products_alone_cycles": alone,
    }


def _operations(program, costs):
    loops, unknown = program.loops
    return {
        "copies": program.copies("images"),
        "dearest": program.dearest(8),
        "operations": program.counts(),
        "loops": loops,
        "loops_of_unknown_length": unknown,
        # The compiler counts the body of a loop only once.
        "bytes_accessed": program.bytes_accessed
        if loops
        else costs.get("bytes accessed", program.bytes_accessed),
        "flops": costs.get("flops"),
    }


def _memory(memory, chip):
    # Donated arguments are also outputs, but need memory only once.
    held = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "held_bytes": held,
        "fits": held <= chip.memory_gib * 2**30,
    }


def _products(request, model):
    """FLOPs of the model's matrix products in a step, over all chips."""
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
