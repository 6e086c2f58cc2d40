"""Reads the text of a compiled program: operations, cycles, copies, products, collectives.

It maps plain text to plain numbers and imports no framework.
"""

import collections
import dataclasses
import functools
import math
import re

BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "token": 0,
    "opaque": 0,
}
# These move or rearrange elements without computing. `bitcast` and similar operations are free.
MOVES = (
    "copy",
    "transpose",
    "reshape",
    "copy-start",
    "concatenate",
    "slice",
    "dynamic-slice",
    "pad",
    "reverse",
    "gather",
)
FREE = (
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "iota",
    "copy-done",
    "after-all",
    "partition-id",
)
PRODUCTS = ("convolution", "dot", "ragged-dot")
LIBRARIES = ("__cublas", "__cudnn")
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|called_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Operation:
    name: str
    opcode: str
    arrays: tuple  # (dtype, shape) of the result, or of each part of a tuple
    operands: tuple  # names
    called: tuple  # names of the computations that it calls
    # `op_name`, the path of the layer, or "" if the compiler does not write it
    layer: str
    cycles: int  # the compiler's estimate, or 0
    trips: int | None  # length of a loop, if the compiler writes it
    condition: str  # name of a loop's computation
    number: int | None  # value of an integer constant, or index of a parameter
    target: str  # of a custom call

    @property
    def bytes(self):
        return sum(array_bytes(array) for array in self.arrays)


def array_bytes(array):
    dtype, shape = array
    return math.prod(shape) * (
        BYTES[dtype] if dtype in BYTES else max(1, int(re.sub(r"\D", "", dtype) or 8) // 8)
    )


class Program:
    """The parsed text of a compiled program."""

    def __init__(self, text):
        self.computations, self.entry = {}, None
        operations = None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                operations = self.computations[header[2]] = []
                if header[1]:
                    self.entry = header[2]
            elif operations is not None and _OPERATION.match(line):
                operations.append(_operation(line))
        if self.entry is None:
            raise ValueError(
                "Expected the text of a compiled program, with a line that starts with ENTRY. "
                "Received: text without such a line"
            )

    @functools.cached_property
    def steps(self):
        """`[(operation, times)]` in order of execution, including those of loops and calls.

        A fusion is one operation. A loop of unknown length counts once.
        """
        return list(self._steps(self.entry, 1))

    def _steps(self, computation, times):
        for operation in self.computations[computation]:
            if operation.opcode in ("while", "call", "conditional"):
                for name in operation.called:
                    yield from self._steps(name, times * (self.trips(operation) or 1))
            else:
                yield operation, times

    def inside(self, operation):
        """All operations of the computations that an operation calls, or else itself."""
        if not operation.called:
            return [operation]
        return [
            inner
            for name in operation.called
            for one in self.computations.get(name, [])
            for inner in self.inside(one)
        ]

    @property
    def loops(self):
        """(number of loops, number of loops of unknown length)"""
        loops = [
            one
            for operations in self.computations.values()
            for one in operations
            if one.opcode == "while"
        ]
        return len(loops), sum(self.trips(one) is None for one in loops)

    def trips(self, loop):
        """The length of a loop, or `None` if it is unknown.

        The TPU compiler does not write it. JAX's loops of known length (`scan`, `map`, `fori_loop`)
        count from 0 by 1 while the counter is less than a constant.
        """
        condition = self.computations.get(loop.condition, [])
        if loop.trips is not None or not condition or condition[-1].opcode != "compare":
            return loop.trips
        limits = [
            one.number for one in condition if one.opcode == "constant" and one.number is not None
        ]
        return limits[0] if len(limits) == 1 else None

    @property
    def cycles(self):
        return sum(operation.cycles * times for operation, times in self.steps)

    @property
    def product_cycles(self):
        """Cycles of the operations that contain a matrix product, with what is fused into them."""
        return sum(
            operation.cycles * times
            for operation, times in self.steps
            if self._has_product(operation)
        )

    def _has_product(self, operation):
        return operation.target.startswith(LIBRARIES) or any(
            inner.opcode in PRODUCTS for inner in self.inside(operation)
        )

    @property
    def bytes_accessed(self):
        """Bytes that all operations read and write, as if nothing stayed on the chip in between."""
        return sum(
            times * self._read_and_written(operation)
            for operation, times in self.steps
            if operation.opcode not in FREE
        )

    def _read_and_written(self, operation):
        sources = [
            self._by_name[name].bytes if name in self._by_name else 0 for name in operation.operands
        ]
        written = operation.bytes
        # If a fusion reads or changes a slice of an array, as loops do, only the slice counts.
        for inner in self.inside(operation) if operation.opcode == "fusion" else ():
            if inner.opcode not in ("dynamic-slice", "dynamic-update-slice"):
                continue
            place = self._parameter(inner.operands[0])
            if place is None or place >= len(sources):
                continue
            if inner.opcode == "dynamic-slice":
                sources[place] = min(sources[place], inner.bytes)
            else:
                written -= sources[place] - self._by_name[inner.operands[1]].bytes
                sources[place] = 0
        return max(written, 0) + sum(sources)

    def _parameter(self, name):
        """Index of the fusion's parameter that an operation is, or is a view of.

        `None` for other operations.
        """
        operation = self._by_name.get(name)
        while (
            operation is not None
            and operation.opcode in ("bitcast", "reshape", "copy")
            and operation.operands
        ):
            operation = self._by_name.get(operation.operands[0])
        return (
            operation.number if operation is not None and operation.opcode == "parameter" else None
        )

    def copies(self, images=None):
        """Operations that only move activations: copies, transposes, reshapes to another tiling.

        Fusions of only such operations count, too. An activation depends on the images and does not
        have the size of a weight or its gradient.

        Args:
            images: string, name of the argument that activations depend on. Defaults to all.

        Returns:
            `{"count", "cycles", "bytes", "unpriced", "unpriced_bytes"}`, where unpriced operations
            are those without an estimate.
        """
        activations = self._depending_on(images)
        weights = {
            math.prod(shape)
            for operation in self.computations[self.entry]
            if operation.opcode == "parameter" and operation.name not in activations
            for _, shape in operation.arrays
        }
        found = collections.Counter(count=0, cycles=0, bytes=0, unpriced=0, unpriced_bytes=0)
        for operation, times in self.steps:
            moved = operation.arrays and math.prod(operation.arrays[0][1])
            if operation.name not in activations or moved in weights or not self.is_move(operation):
                continue
            found.update(
                count=times,
                cycles=times * operation.cycles,
                bytes=times * array_bytes(operation.arrays[0]),
            )
            if not operation.cycles and operation.opcode != "copy-start":
                found.update(
                    unpriced=times, unpriced_bytes=times * array_bytes(operation.arrays[0])
                )
        return dict(found)

    def is_move(self, operation):
        if operation.opcode in FREE or operation.opcode.endswith("-done"):
            return False
        inner = {one.opcode for one in self.inside(operation)}
        return bool(inner & set(MOVES)) and inner <= {*MOVES, *FREE}

    def _depending_on(self, images):
        """Names of all operations that depend on the argument of this name."""
        found = set()
        for name, operations in self.computations.items():
            for operation in operations:
                if operation.opcode == "parameter":
                    # Inside a loop or fusion, weights and activations cannot be told apart.
                    if name != self.entry or images is None or operation.layer == images:
                        found.add(operation.name)
                elif found.intersection(operation.operands):
                    found.add(operation.name)
        return found

    def collectives(self):
        """`{kind: {"count", "bytes"}}` of one step on one chip.

        The bytes are those of the inputs or of the outputs, whichever is larger.
        """
        found = {}
        for operation, times in self.steps:
            for inner in self.inside(operation):
                kind = inner.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    entry = found.setdefault(kind, {"count": 0, "bytes": 0})
                    entry["count"] += times
                    entry["bytes"] += times * self._moved(inner)
        return found

    def _moved(self, operation):
        arrays = operation.arrays
        if operation.opcode.endswith("-start") and len(arrays) > 1:
            return max(map(array_bytes, arrays))  # inputs and outputs
        sources = [self._by_name[name] for name in operation.operands if name in self._by_name]
        return max(operation.bytes, sum(source.bytes for source in sources))

    @functools.cached_property
    def _by_name(self):
        return {one.name: one for operations in self.computations.values() for one in operations}

    def dearest(self, number=8):
        """`[{"layer", "count", "cycles"}]`, the most expensive first, summed over the blocks."""
        cycles, count = collections.Counter(), collections.Counter()
        for operation, times in self.steps:
            if operation.cycles:
                layer = layer_path(operation.layer) or operation.opcode
                cycles[layer] += times * operation.cycles
                count[layer] += times
        return [
            {"layer": layer, "count": count[layer], "cycles": sum_}
            for layer, sum_ in cycles.most_common(number)
        ]

    def counts(self):
        """`{"fusion": 12, "custom-call __cublas$gemm": 4, ...}` of the executed operations."""
        found = collections.Counter()
        for operation, times in self.steps:
            if operation.opcode not in FREE and not operation.opcode.endswith("-done"):
                found[
                    f"custom-call {operation.target}" if operation.target else operation.opcode
                ] += times
        return dict(found.most_common())

    def arrays_with(self, size):
        """`[(layer, dtype, shape)]` of results with a first axis of this size, largest first."""
        found = {
            (layer_path(operation.layer), *array)
            for operations in self.computations.values()
            for operation in operations
            for array in operation.arrays
            if len(array[1]) > 1 and array[1][0] == size and operation.opcode != "parameter"
        }
        return sorted(found, key=lambda item: -array_bytes(item[1:]))


def layer_path(op_name):
    """The path of a layer in an `op_name`, without JAX's wrappers and the numbers of the blocks.

    `jit(step)/transpose(jvp(block_3))/mlp/dot_general` becomes `grad block_*/mlp/dot_general`.
    """
    op_name = op_name.split(";")[0]  # the first of several merged operations
    backward = "transpose(" in op_name
    path = re.sub(r"(^|/)p?jit\([^()/]*\)", "", op_name)
    path = re.sub(r"(?:transpose|jvp|checkpoint|rematted_computation|vmap)\(|\)", "", path)
    path = "/".join(
        part for part in path.split("/") if part and part not in ("while", "body", "closed_call")
    )
    path = re.sub(r"(?<=[a-z])_\d+(?=/|$)", "_*", path)
    return f"grad {path}" if backward else path


def _operation(line):
    name, rest = line.split(" = ", 1)
    name = name.replace("ROOT", "").strip().lstrip("%")
    result, rest = _split_type(rest)
    opcode, rest = rest.split("(", 1)
    inside, attributes = _split_at_parenthesis(rest)
    called = [
        part.strip().lstrip("%")
        for match in _CALLED.findall(attributes)
        for part in "".join(match).split(",")
    ]
    layer = re.search(r'op_name="([^"]*)"', attributes)
    target = re.search(r'custom_call_target="([^"]*)"', attributes)
    cycles, trips, condition = (
        pattern.search(attributes) for pattern in (_CYCLES, _TRIPS, _CONDITION)
    )
    number = opcode in ("constant", "parameter") and re.fullmatch(r"\d+", inside)
    return Operation(
        name=name,
        opcode=opcode,
        arrays=tuple(
            (dtype, tuple(int(size.lstrip("<=")) for size in shape.split(",") if size))
            for dtype, shape in _ARRAY.findall(result)
        ),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        # The function of a reduction is scalar.
        called=()
        if opcode
        in ("reduce", "reduce-window", "sort", "scatter", "all-reduce", "reduce-scatter", "map")
        else tuple(called),
        layer=layer[1] if layer else "",
        cycles=int(cycles[1]) if cycles else 0,
        trips=int(trips[1]) if trips else None,
        condition=condition[1] if condition else "",
        number=int(inside) if number else None,
        target=target[1] if target else "",
    )


def _split_type(text):
    if not text.startswith("("):
        result, rest = text.split(" ", 1)
        return result, rest
    inside, rest = _split_at_parenthesis(text[1:])
    return re.sub(r"/\*.*?\*/", "", inside), rest.lstrip()


def _split_at_parenthesis(text):
    """The text before and after the parenthesis that closes an earlier one."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    raise ValueError(
        f"An operation of the compiled program has an unclosed parenthesis: {text[:200]}"
    )
