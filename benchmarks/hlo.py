"""What a compiled program's text says: its operations, the compiler's estimates, copies, matrix
products and collectives.

Plain text in, plain numbers out: nothing here imports a framework.
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
# Move or rearrange elements, and compute nothing. `bitcast` and the like are free, and are no move
# by themselves.
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
    arrays: tuple  # of the result: (dtype, shape), several where it is a tuple
    operands: tuple  # names
    called: tuple  # names of the computations that it runs
    # `op_name`, the path of the layer that asked for it; "" where the compiler does not say
    layer: str
    cycles: int  # the compiler's estimate; 0 where it has none
    trips: int | None  # of a loop, where the compiler says
    condition: str  # of a loop, the name of the computation
    number: int | None  # a constant's value, where that is a whole number, or a parameter's place
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
                "A compiled program's text has one line that starts with ENTRY. Received: text "
                "without"
            )

    @functools.cached_property
    def steps(self):
        """`[(operation, times)]` that run one after the other: the entry's, and those of the loops
        and calls in it.

        Fusions are one operation each. A loop whose number of trips is not known counts once.
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
        """All operations of the computations that an operation calls; itself, if it calls none."""
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
        """`(number of loops, number of those whose trips the compiler does not know)`"""
        loops = [
            one
            for operations in self.computations.values()
            for one in operations
            if one.opcode == "while"
        ]
        return len(loops), sum(self.trips(one) is None for one in loops)

    def trips(self, loop):
        """How often a loop runs; `None` where that cannot be read.

        The TPU's compiler does not say. JAX' loops of known length (`scan`, `map`, `fori_loop`)
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
        """Of the operations that hold a matrix product, with what is fused into them."""
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
        """Of what each operation reads and writes, as if nothing stayed on the chip between two."""
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
        # Of an array that a fusion takes or changes a slice of, as loops do, the slice.
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
        """The place of the fusion's parameter that an operation in it is, or is another view of;
        `None` of another operation.
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
        """Operations that only move activations: copies, transposes, reshapes into other tiles, and
        fusions of such alone.

        An activation depends on the images and has not the size of a weight (nor of its gradient).

        Args:
            images: string, name of the argument that activations depend on; all arguments by
                default.

        Returns:
            `{"count", "cycles", "bytes", "unpriced", "unpriced_bytes"}`; unpriced are those without
            an estimate.
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
        """Names of operations, in all computations, that depend on the argument of this name."""
        found = set()
        for name, operations in self.computations.items():
            for operation in operations:
                if operation.opcode == "parameter":
                    # Inside a loop or a fusion nothing tells weights and activations apart.
                    if name != self.entry or images is None or operation.layer == images:
                        found.add(operation.name)
                elif found.intersection(operation.operands):
                    found.add(operation.name)
        return found

    def collectives(self):
        """`{kind: {"count", "bytes"}}` of one step on one chip; the bytes are those of what comes
        out or what goes in, the larger.
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
            return max(map(array_bytes, arrays))  # what goes in, and what comes out
        sources = [self._by_name[name] for name in operation.operands if name in self._by_name]
        return max(operation.bytes, sum(source.bytes for source in sources))

    @functools.cached_property
    def _by_name(self):
        return {one.name: one for operations in self.computations.values() for one in operations}

    def dearest(self, number=8):
        """`[{"layer", "count", "cycles"}]`, the blocks of a model taken together, the dearest
        first.
        """
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
        """`{"fusion": 12, "custom-call __cublas$gemm": 4, ...}` of what runs one after the
        other.
        """
        found = collections.Counter()
        for operation, times in self.steps:
            if operation.opcode not in FREE and not operation.opcode.endswith("-done"):
                found[
                    f"custom-call {operation.target}" if operation.target else operation.opcode
                ] += times
        return dict(found.most_common())

    def arrays_with(self, size):
        """`[(layer, dtype, shape)]` of the results whose first axis has this size, the largest
        first.
        """
        found = {
            (layer_path(operation.layer), *array)
            for operations in self.computations.values()
            for operation in operations
            for array in operation.arrays
            if len(array[1]) > 1 and array[1][0] == size and operation.opcode != "parameter"
        }
        return sorted(found, key=lambda item: -array_bytes(item[1:]))


def layer_path(op_name):
    """A layer's path out of an `op_name`, without what JAX wraps around it and without the blocks'
    numbers.

    `jit(step)/transpose(jvp(block_3))/mlp/dot_general` becomes `grad block_*/mlp/dot_general`.
    """
    op_name = op_name.split(";")[0]  # of operations that were made one, the first
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
        # A reduction's function is a scalar one.
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
    """What stands before the parenthesis that closes one opened before, and what after."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    raise ValueError(
        f"A parenthesis is not closed in an operation of the compiled program: {text[:200]}"
    )
