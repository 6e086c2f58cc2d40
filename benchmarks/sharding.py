"""How a step's arrays are split over the chips of a mesh, and what the compiled program says of
it.
"""

import contextlib
import math

from benchmarks.compile_programs import BATCH


def placement(mesh, step, described):
    """`(alike -> sharding of an argument, options of jax.jit)`.

    Args:
        mesh: dict, axis to size; empty for the topology's first device alone.
        step: `Step`.
        described: topology of `jax.experimental`.
    """
    import jax

    if not mesh:
        single = jax.sharding.SingleDeviceSharding(described.devices[0])
        return lambda alike: single, {}
    from jax.experimental import mesh_utils

    # Neighbours on an axis are neighbours in the torus; a side of 16 may be an axis of 8 and the
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
    # What a step changes comes out as it went in.
    changed = jax.tree.map(place, tuple(step.alike[index] for index in step.donated))
    return place, {"out_shardings": (place(""), *changed)}


def distribution(mesh):
    """A context in which layers are traced as in Keras' `ModelParallel` over this mesh; for one
    chip, as without.
    """
    if not mesh:
        return contextlib.nullcontext()
    import keras

    batch = {} if "batch" in mesh else {"batch": 1}
    rules = _rules({**batch, **mesh})
    return keras.distribution.ModelParallel(layout_map=rules, batch_dim_name="batch").scope()


def _layout(mesh):
    """A weight's path to its axes, by the rules of this package's backbone."""
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
    """What of a row is about the mesh."""
    collectives = program.collectives()
    whole = program.arrays_with(request.batch_size) if mesh.get("batch", 1) > 1 else []
    return {
        "chips": math.prod(mesh.values()),
        "collectives": collectives,
        "collective_bytes": sum(kind["bytes"] for kind in collectives.values()),
        # On a chip nothing should start with the axis of all chips' images. (A number of images
        # that no weight's axis has is needed for that to mean something.)
        "whole_batch_arrays": len(whole),
        "largest_whole_batch_arrays": [
            f"{layer}: {dtype}{list(shape)}" for layer, dtype, shape in whole[:4]
        ],
    }
