"""What a function's graph costs on Metal: kernel launches, and the bytes that they read and write.

Counted from the exported graph, never measured. The rules follow MLX's sources: views cost nothing,
`mx.compile` fuses chains of elementwise operations, and a sort of more than 2,048 numbers is a
merge sort of many launches.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

# Broadcast is one of them, because it doesn't stop a chain; alone it is a view.
ELEMENTWISE = {
    *("Abs", "Add", "AsType", "BitwiseBinary", "Broadcast", "Divide"),
    *("Equal", "Exp", "Greater", "GreaterEqual", "Less", "LessEqual", "Log", "Log1p"),
    *("LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Multiply", "Negative"),
    *("NotEqual", "Select", "Subtract", "Tanh", "View"),
}
STRIDED = {"Broadcast", "Slice", "Transpose"}  # views that a reshape has to copy
VIEWS = {*STRIDED, "ExpandDims", "Flatten", "Reshape", "Squeeze", "Unflatten"}
SORTS = {"ArgPartition", "ArgSort", "Partition", "Sort"}
OTHERS = {"Arange", "ArgReduce", "Concatenate", "LogSumExp", "RandomBits", "Reduce", "Scan"}
OTHERS |= {"Softmax"}
MOST_DEPTH = 11  # of a chain that mx.compile fuses
MOST_SORTED = 2048  # numbers that one launch can sort


class Launch(NamedTuple):
    """An operation that runs on the device, or a chain of them that runs as one."""

    name: str
    launches: int
    nbytes: int


class Node(NamedTuple):
    """An operation of the graph, with the names of the arrays that it reads and makes."""

    name: str
    inputs: list[str]
    output: str


class Graph:
    """The graph of a call of `function`, whose arguments and results are arrays."""

    def __init__(self, function: Callable[..., Any], *arguments: mx.array) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._itemsizes: dict[str, int] = {}
        self._constants: set[str] = set()
        self._results: set[str] = set()
        self._nodes: list[Node] = []
        mx.export_function(self._read, function, *arguments)
        self._maker = {node.output: node for node in self._nodes}
        self._users: dict[str, list[Node]] = defaultdict(list)
        for node in self._nodes:
            for name in node.inputs:
                self._users[name].append(node)

    def _read(self, entry: dict[str, Any]) -> None:
        if entry["type"] == "constants":
            for name, array in entry["constants"]:
                self._constants.add(name)
                self._shapes[name], self._itemsizes[name] = array.shape, array.itemsize
        arrays = [*entry.get("inputs", ()), *entry.get("outputs", ())]
        for name, shape, dtype in arrays:
            self._shapes[name], self._itemsizes[name] = shape, dtype.size
        if entry["type"] == "outputs":
            self._results = {name for name, *_ in entry["outputs"]}
        if entry["type"] == "primitive":
            (output, *_), *others = entry["outputs"]
            assert not others
            self._nodes.append(Node(entry["name"], [name for name, *_ in entry["inputs"]], output))

    def launches(self) -> list[Launch]:
        """All launches, from the last to the first."""
        found: list[Launch] = []
        done: set[str] = set()
        for node in reversed(self._nodes):
            if node.output in done:
                continue
            if node.name in ELEMENTWISE:
                chain = self._chain(node)
                done |= {part.output for part in chain}
                if {part.name for part in chain} != {"Broadcast"}:
                    found.append(self._fused(chain))
            elif node.name == "Reshape" and self._is_strided(node.inputs[0]):
                found.append(Launch("Copy", 1, 2 * self._nbytes(node.output)))
            elif node.name not in VIEWS:
                found.append(self._single(node))
        return found

    def _chain(self, last: Node) -> list[Node]:
        """The elementwise operations that run together with the last of them."""
        chain = {last.output: last}

        def follow(node: Node, depth: int) -> None:
            for name in node.inputs:
                maker = self._maker.get(name)
                joins = maker is not None and maker.name in ELEMENTWISE and depth < MOST_DEPTH
                # A broadcast is made again for each chain that needs it.
                alone = all(user.output in chain for user in self._users[name])
                if joins and name not in self._results:
                    assert maker is not None
                    if alone or maker.name == "Broadcast":
                        chain[name] = maker
                        follow(maker, depth + 1)

        follow(last, 1)
        return list(chain.values())

    def _fused(self, chain: list[Node]) -> Launch:
        made = {node.output for node in chain}
        read = {name for node in chain for name in node.inputs} - made
        nbytes = sum(self._source_bytes(name) for name in read) + self._nbytes(chain[0].output)
        names = Counter(node.name for node in chain if node.name != "Broadcast")
        return Launch("+".join(names), 1, nbytes)

    def _single(self, node: Node) -> Launch:
        output = self._nbytes(node.output)
        if node.name in SORTS and self._shapes[node.output][-1] > MOST_SORTED:
            # Blocks are sorted, then merged in pairs, each time in two launches; values and 32-bit
            # indices are read and written each time, and the result is copied.
            size = math.prod(self._shapes[node.output])
            merges = math.ceil(math.log2(self._shapes[node.output][-1] / MOST_SORTED))
            both = 2 * (self._itemsizes[node.inputs[0]] + 4)
            return Launch(node.name, 2 + 2 * merges, size * ((1 + merges) * both + 4))
        if node.name in ("Gather", "GatherAxis"):  # reads the indices and what it gathers
            return Launch(node.name, 1, 2 * output + self._source_bytes(node.inputs[1]))
        if node.name == "ScatterAxis":
            # In place if nobody else uses the input.
            whole, places, values = node.inputs
            assert len(self._users[whole]) == 1, "the scatter copies its input"
            written = math.prod(self._shapes[places]) * self._itemsizes[whole]
            read = self._source_bytes(places) + self._source_bytes(values)
            return Launch(node.name, 1, read + written)
        assert node.name in SORTS | OTHERS, f"unknown operation {node.name}"
        return Launch(node.name, 1, output + sum(self._source_bytes(name) for name in node.inputs))

    def _nbytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._itemsizes[name]

    def _source_bytes(self, name: str) -> int:
        """Bytes that are read for an array: a view of fewer numbers reads those only."""
        nbytes = self._nbytes(name)
        while name in self._maker and self._maker[name].name in VIEWS:
            name = self._maker[name].inputs[0]
            nbytes = min(nbytes, self._nbytes(name))
        return nbytes

    def _is_strided(self, name: str) -> bool:
        if self._source_bytes(name) == self._itemsizes[name]:  # one number, however often
            return False
        while name in self._maker and self._maker[name].name in VIEWS:
            node = self._maker[name]
            if node.name in STRIDED:
                return True
            name = node.inputs[0]
        return False
