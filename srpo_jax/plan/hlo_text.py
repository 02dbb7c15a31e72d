"""Reads the text of a compiled program (HLO): computations, instructions, how often each one runs.

XLA's own cost analysis counts the body of a loop once (measured: 3-10 % of the FLOPs of a model
with scanned layers), so what matters is here: the call graph, and the trip counts of the loops.
Only what XLA prints is used: `compiled.as_text()` of CPU, GPU and TPU programs alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?"
    r"([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Operations that hand a value on unchanged, as far as an integer is concerned.
_SAME = ("copy", "bitcast", "convert", "reshape", "opt-barrier", "broadcast")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0}


class Array(NamedTuple):
    """An array type: element type as HLO names it, and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        total = 1
        for n in self.dims:
            total *= n
        return total

    @property
    def nbytes(self) -> float:
        """Without the padding of tiled layouts."""
        width = _BYTES.get(self.dtype)
        if width is None:
            bits = re.search(r"\d+", self.dtype)  # f32, s8, f8e4m3fn, ...
            width = int(bits[0]) / 8 if bits else 0
        return self.size * width


@dataclass
class Instruction:
    """One line: `name = type opcode(operands), rest`. arrays: of the type, in order."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    rest: str
    called: tuple[str, ...]

    def attribute(self, name: str) -> str:
        """The text of `name={...}` or `name=word`, without the braces; "" if absent."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^,\s]+))", self.rest)
        if not found:
            return ""
        return found[1] if found[1] is not None else found[2].lstrip("%")


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        return self.instructions[instruction.operands[index]]


class Module:
    """A parsed program. `runs`: computation name -> how often one step runs it.

    step: "" when a step is the whole program; else the end of the name (op_name) of a loop, of
    which one round is a step. lengths: rounds of loops, by the ends of their names, where they are
    data. unknown_loops: names of loops of which neither the program nor `lengths` says it; their
    bodies are counted once. Both branches of a conditional are counted.
    """

    def __init__(self, text: str, *, step: str = "", lengths: Mapping[str, int] | None = None):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self._parse(text)
        self._lengths = dict(lengths or {})
        self._start = self._body(step) if step else self.entry
        self.unknown_loops: list[str] = []
        self.runs = self._count_runs()

    def __iter__(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """(computation, instruction, runs) of everything that runs."""
        for name, runs in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, runs

    def _parse(self, text: str) -> None:
        current = None
        for line in text.splitlines():
            if line.startswith("}"):
                current = None
            elif current is None:
                found = _HEADER.match(line)
                if found:
                    current = self.computations[found[2]] = Computation(found[2])
                    self.entry = found[2] if found[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                body = line[found.end() :]
                if "/*" in body:
                    body = _COMMENT.sub("", body)
                instruction = _instruction(found[2], body)
                current.instructions[found[2]] = instruction
                if found[1]:
                    current.root = found[2]

    def _body(self, name: str) -> str:
        """The body of the one loop whose name ends so. Errors: ValueError when there is none."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "while" and label(instruction).endswith(name):
                    return instruction.attribute("body")
        raise ValueError(f"the program has no loop {name}")

    def _count_runs(self) -> dict[str, int]:
        # The text lists a computation before its callers, the entry last.
        runs = dict.fromkeys(self.computations, 0)
        runs[self._start] = 1
        for name in reversed(self.computations):
            computation = self.computations[name]
            for instruction in computation.instructions.values() if runs[name] else ():
                times = runs[name]
                if instruction.opcode == "while":
                    trips = self._trips(computation, instruction)
                    if trips is None:
                        self.unknown_loops.append(label(instruction))
                    times *= 1 if trips is None else trips
                for called in instruction.called:
                    runs[called] = runs.get(called, 0) + times
        return {name: count for name, count in runs.items() if count}

    def _trips(self, computation: Computation, loop: Instruction) -> int | None:
        """How often a `for i in range` loop runs: from start, bound and step, if all are known."""
        known = _KNOWN_TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        for name, rounds in self._lengths.items():
            if label(loop).endswith(name):
                return rounds
        condition = self.computations[loop.attribute("condition")]
        test, where = condition.instructions[condition.root], condition
        names = list(test.operands)
        if test.opcode == "fusion":  # the comparison, fused: its parameters are our operands
            where = self.computations[test.called[0]]
            given, test = test.operands, where.instructions[where.root]
            names = [_through(where, name, given) for name in test.operands]
        if test.opcode != "compare" or test.attribute("direction") not in ("LT", "LE", "NE"):
            return None
        index = _element(condition, names[0])
        bound = self._bound(computation, loop, condition, where, names[1])
        start = self._initial(computation, loop, index)
        if bound is None or start is None:
            return None
        step = self._step(self.computations[loop.attribute("body")], index)
        bound += test.attribute("direction") == "LE"
        return max(0, -(-(bound - start) // step))

    def _bound(self, computation, loop, condition, where, name) -> int | None:
        for place in (condition, where):
            if name in place.instructions:
                found = _constant(place, name)
                if found is not None:
                    return found
        index = _element(condition, name)
        return None if index is None else self._initial(computation, loop, index)

    def _initial(self, computation: Computation, loop: Instruction, index: int | None):
        """The integer with which element `index` of a loop's state starts."""
        start = computation.operand(loop, 0)
        while start.opcode in _SAME and start.operands:
            start = computation.operand(start, 0)
        if index is None or start.opcode != "tuple":
            return None
        return _constant(computation, start.operands[index])

    def _step(self, body: Computation, index: int | None) -> int:
        """What a round adds to the counter: 1, unless the body says otherwise."""
        root = body.instructions[body.root]
        if root.opcode != "tuple" or index is None or index >= len(root.operands):
            return 1
        made, where = body.operand(root, index), body
        if made.opcode == "fusion":
            where = self.computations[made.called[0]]
            made = where.instructions[where.root]
        if made.opcode == "add":
            for name in made.operands:
                step = _constant(where, name)
                if step:
                    return step
        return 1


def _instruction(name: str, body: str) -> Instruction:
    """Parses `type opcode(operands), rest`; a type may be a tuple, which holds spaces."""
    end = _closing(body, 0) if body.startswith("(") else body.index(" ")
    kind, rest = body[:end], body[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing - 1]
    rest_of = rest[closing:]
    called = []
    for one, many in _CALLED.findall(rest_of):
        called += [one] if one else [item.strip().lstrip("%") for item in many.split(",")]
    opcode = rest[:opening]
    operands = (
        ()
        if opcode in ("constant", "parameter")
        else tuple(re.findall(r"%?([\w.\-]+)(?=,|$)", inside))
    )
    return Instruction(name, opcode, arrays_of(kind), operands, inside, rest_of, tuple(called))


def _closing(text: str, opening: int) -> int:
    """The index just past the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index + 1
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def arrays_of(kind: str) -> tuple[Array, ...]:
    """The arrays of a type, also of a tuple."""
    found = []
    for dtype, dims in _ARRAY.findall(kind):
        sizes = tuple(int(n.lstrip("<=")) for n in dims.split(",") if n)
        found.append(Array(dtype, sizes))
    return tuple(found)


def _through(inner: Computation, name: str, given: tuple[str, ...]) -> str:
    """The caller's name of a fused computation's parameter, else the name itself."""
    made = inner.instructions[name]
    while made.opcode in _SAME and made.operands:
        made = inner.operand(made, 0)
    return given[int(made.inside)] if made.opcode == "parameter" else made.name


def _element(computation: Computation, name: str) -> int | None:
    """k if the value is element k of the computation's tuple parameter."""
    made = computation.instructions.get(name)
    while made and made.opcode in _SAME and made.operands:
        made = computation.operand(made, 0)
    if made is None or made.opcode != "get-tuple-element":
        return None
    return int(made.attribute("index"))


def _constant(computation: Computation, name: str) -> int | None:
    """The integer that an instruction always gives, if it is one."""
    made = computation.instructions[name]
    while made.opcode in _SAME and made.operands:
        made = computation.operand(made, 0)
    if made.opcode != "constant":
        return None
    return int(made.inside) if re.fullmatch(r"-?\d+", made.inside) else None


def label(instruction: Instruction) -> str:
    """What the instruction was in the model's program: its op_name, else its own name."""
    found = re.search(r'op_name="([^"]*)"', instruction.rest)
    return found[1] if found else instruction.name
