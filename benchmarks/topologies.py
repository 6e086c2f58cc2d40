"""Devices to compile for without having them: how to describe them to JAX, and their data."""

import contextlib
import dataclasses
import importlib.util
import math
import re

EXAMPLES = "v5e:1x1, v5e:16x16, v6e:2x2, v4:2x2x1, v5p:2x2x1, h100"


@dataclasses.dataclass(frozen=True)
class Chip:
    platform: str  # of jax.experimental.topologies
    memory_gib: float
    tflop_per_second: float  # for dense bfloat16 products
    jax_name: str = ""
    accelerator_type: str = ""  # libtpu would ask a metadata server for it
    axes: int = 2  # number of sides of its topologies
    cores: int = 1  # cores per chip, seen by a program as one
    # If known, the cycles of the products alone are computed.
    clock_ghz: float | None = None


# Memory and peaks: cloud.google.com/tpu/docs/v5e and its neighbours; NVIDIA's data sheet of the
# H100 SXM.
CHIPS = {
    "v4": Chip("tpu", 32, 275, "v4", "v4-8", axes=3, cores=2),
    "v5e": Chip("tpu", 16, 197, "v5e", "v5litepod-4", clock_ghz=1.5),
    "v5p": Chip("tpu", 95, 459, "v5", "v5p-8", axes=3, cores=2),
    "v6e": Chip("tpu", 32, 918, "v6e", "v6e-4"),
    "h100": Chip("cuda", 80, 989),
}

# What XLA must know of a GPU to compile for it, as text of its GpuTargetConfigProto (openxla/xla,
# xla/backends/gpu/target_config/specs, has such files). The numbers are public: NVIDIA's data sheet
# of the H100 SXM, and the table of compute capability 9.0 in the CUDA C++ programming guide.
TARGET_CONFIGS = {
    "h100": """
        platform_name: "CUDA"
        device_description_str: "NVIDIA H100 80GB HBM3"
        dnn_version_info { major: 9 minor: 10 patch: 2 }
        gpu_device_info {
            name: "NVIDIA H100 80GB HBM3"
            device_vendor: "NVIDIA Corporation"
            platform_version: "Compute Capability 9.0"
            cuda_compute_capability { major: 9 minor: 0 }
            core_count: 132
            fpus_per_core: 128
            clock_rate_ghz: 1.98
            device_memory_size: 85899345920
            memory_bandwidth: 3350000000000
            l2_cache_size: 52428800
            threads_per_warp: 32
            threads_per_block_limit: 1024
            threads_per_core_limit: 2048
            thread_dim_limit_x: 1024
            thread_dim_limit_y: 1024
            thread_dim_limit_z: 64
            block_dim_limit_x: 2147483647
            block_dim_limit_y: 65535
            block_dim_limit_z: 65535
            registers_per_core_limit: 65536
            registers_per_block_limit: 65536
            shared_memory_per_core: 233472
            shared_memory_per_block: 49152
            shared_memory_per_block_optin: 232448
            device_address_bits: 64
            ecc_enabled: true
            driver_version: "12.9.0"
            runtime_version: "12.9.0"
            compile_time_toolkit_version: "12.9.0"
            dnn_version: "9.10.2"
        }
    """,
}


@dataclasses.dataclass(frozen=True)
class Topology:
    name: str
    chip: Chip
    shape: tuple  # of the chips

    @property
    def num_chips(self):
        return math.prod(self.shape)

    def num_chips_of(self, mesh):
        """Number of chips that share the work: those of the mesh, or one."""
        return math.prod(mesh.values()) if mesh else 1


def parse(name):
    """`"v5e:2x4"` to a `Topology`."""
    generation, _, layout = name.partition(":")
    chip = CHIPS.get(generation)
    if chip is None:
        raise ValueError(
            f"--topology must be a chip ({', '.join(CHIPS)}), with a layout for TPUs: {EXAMPLES}. "
            f"Received: {name}"
        )
    if chip.platform == "cuda":
        if layout:
            raise ValueError(
                f"--topology: {generation} is one GPU and has no layout. Received: {name}"
            )
        return Topology(name, chip, (1,))
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", layout) or layout.count("x") != chip.axes - 1:
        example = "x".join(["2", "2", "1"][: chip.axes])
        raise ValueError(
            f"--topology: {generation} has {chip.axes} sides, such as {generation}:{example}. "
            f"Received: {name}"
        )
    return Topology(name, chip, tuple(map(int, layout.split("x"))))


def parse_mesh(text, topology):
    """`"batch=32,model=8"` to `{"batch": 32, "model": 8}`, or `""` to `{}` for one chip.

    A mesh covers all chips of the topology.
    """
    if not text:
        return {}
    if not re.fullmatch(r"(batch|model)=[1-9]\d*(,(batch|model)=[1-9]\d*)?", text):
        raise ValueError(
            "--mesh must have the axes batch or model, such as batch=32,model=8 or batch=256. "
            f"Received: {text}"
        )
    mesh = {name: int(size) for name, size in (axis.split("=") for axis in text.split(","))}
    if math.prod(mesh.values()) != topology.num_chips:
        raise ValueError(
            f"--mesh must use all {topology.num_chips} chips of {topology.name}. Received: {text}, "
            f"which are {math.prod(mesh.values())}"
        )
    return mesh


def environment(topology):
    """Environment variables of the process that compiles, to be set before it imports JAX.

    Without them, libtpu waits for a metadata server.
    """
    common = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if topology.chip.platform == "cuda":
        return {
            **common,
            "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
        }
    return {
        **common,
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": topology.chip.accelerator_type,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used: several may compile at once
        # The row records warnings of the partitioner.
        "TPU_MIN_LOG_LEVEL": "1",
        "TPU_STDERR_LOG_LEVEL": "1",
    }


def devices(topology):
    """JAX's description of the topology, whose `devices` can be compiled for."""
    from jax.experimental import topologies

    if topology.chip.platform == "cuda" and not _has("jax_plugins.xla_cuda12"):
        raise ImportError(
            'Compiling for a GPU needs XLA\'s plugin and cuDNN: `pip install ".[cuda-compile]"`.'
        )
    if topology.chip.platform == "tpu" and not _has("libtpu"):
        raise ImportError(
            'Compiling for a TPU needs libtpu (Linux, x86_64): `pip install ".[tpu]"`.'
        )
    if topology.chip.platform == "cuda":
        return topologies.get_topology_desc(
            platform="cuda", target_config=TARGET_CONFIGS[topology.name], topology="1x1x1"
        )
    options = {}
    if topology.num_chips < 4:  # of a host's four
        options["chips_per_host_bounds"] = (*topology.shape, *[1] * (3 - len(topology.shape)))
    if topology.chip.cores > 1:
        options["chip_config_name"] = "megacore"
    layout = "x".join(map(str, topology.shape))
    return topologies.get_topology_desc(
        topology_name=f"{topology.chip.jax_name}:{layout}", platform="tpu", **options
    )


def _has(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


@contextlib.contextmanager
def traced_for(devices):
    """A context in which layers choose their implementation as on a host with these devices."""
    import unittest.mock

    import jax

    import keras_deit

    platform = {"tpu": "tpu", "cuda": "gpu", "gpu": "gpu"}[devices[0].platform]
    with contextlib.ExitStack() as stack:
        if hasattr(keras_deit.layers, "target_platform"):
            stack.enter_context(keras_deit.layers.target_platform(platform))
        # Keras has no switch for this: it asks JAX for its devices.
        here = jax.devices

        def there(backend=None):
            return list(devices) if backend in (None, platform) else here(backend)

        stack.enter_context(unittest.mock.patch.object(jax, "devices", there))
        stack.enter_context(unittest.mock.patch.object(jax, "default_backend", lambda: platform))
        if platform == "gpu":
            # JAX and Keras ask the GPU that is there whether it is new enough for cuDNN's
            # attention.
            attention = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
            capability = tuple(map(int, devices[0].compute_capability.split(".")))

            def at_least(wanted):
                return capability >= tuple(map(int, wanted.split(".")))

            def equal(wanted):
                return capability == tuple(map(int, wanted.split(".")))

            stack.enter_context(
                unittest.mock.patch.object(attention, "check_compute_capability", at_least)
            )
            stack.enter_context(
                unittest.mock.patch.object(attention, "is_cuda_compute_capability_equal", equal)
            )
        yield
