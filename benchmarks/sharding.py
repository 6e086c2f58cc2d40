"""How the arrays of a step are split over the chips of a mesh, and what is compiled from it."""

import contextlib
import math

from benchmarks.compile_programs import BATCH


def placement(mesh, step, described):
    """Returns (function from `alike` to the sharding of an argument, options of `jax.jit`).

    Args:
        mesh: dict, axis to size, or empty for the first device of the topology.
        step: `Step`.
        described: topology of `jax.experimental`.
    """
    import jax

    if not mesh:
        single = jax.sharding.SingleDeviceSharding(described.devices[0])
        return lambda alike: single, {}
    from jax.experimental import mesh_utils

    # Neighbors on an axis are neighbors in the torus; a side of 16 may be an axis of 8 and the
    # half of another.
    devices = mesh_utils.create_device_mesh(
        tuple(mesh.values()), described.devices, allow_split_physical_axes=True
    )
    device_mesh = jax.sharding.Mesh(devices, tuple(mesh))
    layout = _layout(mesh)

    def place(alike):
        if alike == BATCH:
            return jax.sharding.NamedSharding(
                device_mesh, jax.sharding.PartitionSpec("batch" if "batch" in mesh else None)
            )
        return jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec(*layout(alike)))

    if not step.donated:
        return place, {}
    # Outputs that replace inputs keep their sharding.
    changed = jax.tree.map(place, tuple(step.alike[index] for index in step.donated))
    return place, {"out_shardings": (place(""), *changed)}


def distribution(mesh):
    """A context that traces layers as in Keras' `ModelParallel` over this mesh, if there is one."""
    if not mesh:
        return contextlib.nullcontext()
    import keras

    batch = {} if "batch" in mesh else {"batch": 1}
    rules = _rules({**batch, **mesh})
    return keras.distribution.ModelParallel(layout_map=rules, batch_dim_name="batch").scope()


def _layout(mesh):
    """A function from a weight's path to its axes, by the layout map of this package's backbone."""
    if "model" not in mesh:
        return lambda path: ()
    rules = _rules(mesh)

    def axes(path):
        found = rules[path] if path else None
        return tuple(found.axes) if found is not None else ()

    return axes


def _rules(mesh):
    import keras

    from keras_deit.models import DeiTBackbone

    devices = [f"tpu:{index}" for index in range(math.prod(mesh.values()))]
    device_mesh = keras.distribution.DeviceMesh(tuple(mesh.values()), list(mesh), devices)
    return (
        DeiTBackbone.get_layout_map(device_mesh)
        if "model" in mesh
        else keras.distribution.LayoutMap(device_mesh)
    )


def facts(program, mesh, request):
    """The values of a row that are about the mesh."""
    collectives = program.collectives()
    whole = program.arrays_with(request.batch_size) if mesh.get("batch", 1) > 1 else []
    return {
        "chips": math.prod(mesh.values()),
        "collectives": collectives,
        "collective_bytes": sum(kind["bytes"] for kind in collectives.values()),
        # No array on a chip should start with an axis of all chips' images. (A number of images
        # that no weight's axis has is needed for that to mean something.)
        "whole_batch_arrays": len(whole),
        "largest_whole_batch_arrays": [
            f"{layer}: {dtype}{list(shape)}" for layer, dtype, shape in whole[:4]
        ],
    }
