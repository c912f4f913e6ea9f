"""Reads a compiled program's text (HLO, as `compiled.as_text()` gives it): collectives and memory traffic.

XLA's own count of bytes (`cost_analysis()["bytes accessed"]`) includes what stays in the chip's vector memory and what one
operation reads twice. Here a buffer counts where an operation of the schedule reads or writes it in HBM, with the padding of
its tiles: `bf16[8,64]{1,0:T(8,128)(2,1)}` takes 8 x 128 values, and `S(1)` behind the tiles marks vector memory, which costs
nothing. So this is a lower estimate where an operation reads a buffer several times, and an upper one where it reads a part.
"""

import dataclasses
import math
import re
from collections import defaultdict

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*)$")
_CALLS = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations)=\{?([^,}\s]+(?:, %[^,}\s]+)*)"
)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
# What moves nothing: names for other buffers, the ends of what has begun, scalars.
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
}
_FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO: `%name = type opcode(arguments), attributes`."""

  name: str
  type: str
  opcode: str
  arguments: str
  attributes: str

  @property
  def operands(self) -> tuple[str, ...]:
    """Names of the instructions whose results this one takes."""
    return tuple(re.findall(r"%([^\s,()]+)", self.arguments))

  def called(self) -> list[str]:
    """Names of the computations that this instruction runs."""
    return [name.strip(" %") for found in _CALLS.findall(self.attributes) for name in found.split(",")]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program: its computations by name, and the name of the first."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of the program.

  Attributes:
    kind: "all-reduce", "all-gather", ...
    bytes: what is reduced or gathered, whole: of a gather or a scatter the larger side.
    devices: that take part in one group.
    times: how often it runs in one run of the program.
  """

  kind: str
  bytes: int
  devices: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that each device sends in all runs, by a ring."""
    share = (self.devices - 1) / self.devices
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(self.kind, share)
    return factor * self.bytes * self.times


def parse(text: str) -> Module:
  """The computations of a program's text.

  Raises:
    ValueError: text that holds no program.
  """
  computations, entry, body = {}, "", None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      body = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
    elif body is not None and (found := _INSTRUCTION.match(line)):
      instruction = _instruction(found[1], found[2])
      body[instruction.name] = instruction
  if not entry:
    raise ValueError("this is no HLO text: it has no ENTRY computation")
  return Module(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
  rest = re.sub(r"/\*.*?\*/", "", rest)
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  kind, rest = rest[:end], rest[end:].strip()
  opcode, _, _ = rest.partition("(")
  close = _closing(rest, len(opcode))
  return Instruction(name, kind, opcode, rest[len(opcode) + 1 : close], rest[close + 1 :])


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if not depth:
      return i
  return len(text)


def size(shape: str, hbm_only: bool = False, padded: bool = True) -> int:
  """Bytes of a type, e.g. "(bf16[8,64]{1,0:T(8,128)(2,1)}, f32[])"; of a tuple, the sum.

  Args:
    shape: the type.
    hbm_only: leave out what does not lie in HBM.
    padded: with the padding of the tiles.
  """
  total = 0
  for kind, dims, layout in _SHAPE.findall(shape):
    if hbm_only and re.search(r"S\([1-9]", layout):
      continue
    bits = _BITS.get(kind) if kind in _BITS else int(re.search(r"\d+", kind)[0]) if re.search(r"\d", kind) else 0
    sizes = [int(d) for d in dims.split(",") if d]
    order, _, tiles = layout.partition(":")
    if padded and (tile := re.search(r"T\(([\d,]+)\)", tiles)):
      minor = [int(d) for d in order.split(",") if d]  # the axes, from the one whose values are neighbours
      for axis, multiple in zip(minor, reversed([int(t) for t in tile[1].split(",")]), strict=False):
        sizes[axis] = -(-sizes[axis] // multiple) * multiple
    total += math.prod(sizes) * bits // 8
  return total


def runs(module: Module) -> dict[str, int]:
  """How often each computation runs in one run of the program; of a loop of unknown length, once."""
  counts: dict[str, int] = defaultdict(int)

  def visit(name, times):
    counts[name] += times
    for instruction in module.computations.get(name, {}).values():
      for called in instruction.called():
        visit(called, times * (trips(instruction, module) if instruction.opcode == "while" else 1))

  visit(module.entry, 1)
  return counts


def trips(loop: Instruction, module: Module) -> int:
  """Number of rounds of a `while`: what the compiler noted, or the constant that its condition compares the counter with, which
  in JAX's loops starts at 0; 1 where neither is there."""
  if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
    return int(found[1])
  condition = module.computations.get(re.search(r"condition=%?([^,\s]+)", loop.attributes)[1], {})
  for test in condition.values():
    if test.opcode == "compare" and "direction=LT" in test.attributes:
      limits = [condition[o].arguments for o in test.operands if o in condition and condition[o].opcode == "constant"]
      return int(limits[0]) if limits else 1
  return 1


def collectives(text: str, devices: int) -> list[Collective]:
  """The collectives of a program.

  One that the compiler has cut into steps, to run beside other work, stands in several fusions, all with the same chain_id: it
  counts once.

  Args:
    text: of the compiled program.
    devices: number of devices of the program.
  """
  module, found, chains = parse(text), [], set()
  counts = runs(module)
  for name, body in module.computations.items():
    for instruction in body.values():
      kind = instruction.opcode.removesuffix("-start")
      if kind not in _COLLECTIVES or not counts[name]:
        continue
      chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
      if chain and (kind, chain[1]) in chains:
        continue
      chains |= {(kind, chain[1])} if chain else set()
      given = sum(size(body[o].type, padded=False) for o in instruction.operands)
      made = size(_result(instruction), padded=False)
      if name.startswith("all-reduce-scatter"):  # a fusion that keeps a device's part of the sum
        kind = "reduce-scatter"
      found.append(Collective(kind, max(given, made), _group(instruction.attributes, devices), counts[name]))
  return found


def _result(instruction: Instruction) -> str:
  """The type of what an instruction makes; of a start, without the operands that its tuple repeats."""
  if not instruction.opcode.endswith("-start") or instruction.opcode == "all-reduce-start":
    return instruction.type
  parts = _parts(instruction.type)
  # copy-start gives (destination, source, context); the others (operands, results, contexts...).
  return parts[0] if instruction.opcode == "copy-start" or len(parts) == 1 else parts[1]


def _parts(shape: str) -> list[str]:
  """The members of a tuple type."""
  if not shape.startswith("("):
    return [shape]
  parts, depth, start = [], 0, 1
  for i, c in enumerate(shape):
    if c in "({[":
      depth += 1
    if c in ")}]":
      depth -= 1
    if (c == "," and depth == 1) or depth == 0:
      parts.append(shape[start:i].strip())
      start = i + 1
  return parts


def _group(attributes: str, devices: int) -> int:
  """Devices of one replica group."""
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
    sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", found[2]))
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return found[1].count(",") + 1
  return devices


def traffic(text: str) -> int:
  """Bytes that one run of a program reads from and writes to HBM."""
  module = parse(text)

  def of_computation(name):
    body = module.computations.get(name, {})
    return sum(of_instruction(i, body) for i in body.values())

  def of_instruction(instruction, body):
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
      return 0
    if opcode == "while":
      return trips(instruction, module) * of_computation(re.search(r"body=%?([^,\s]+)", instruction.attributes)[1])
    if opcode == "conditional":
      return max(of_computation(c) for c in instruction.called())
    if opcode in ("call", "async-start"):
      return sum(of_computation(c) for c in instruction.called())
    if opcode == "custom-call" and any(f'custom_call_target="{t}"' in instruction.attributes for t in _FREE_CALLS):
      return 0
    result = _result(instruction)
    written = size(result, hbm_only=True)
    if opcode in ("slice-start", "slice", "dynamic-slice"):  # of its operand it reads what it makes
      operand = body.get(instruction.operands[0])
      return written + (size(_unplaced(result)) if operand is None or size(operand.type, hbm_only=True) else 0)
    if opcode == "dynamic-update-slice":  # in place
      return 2 * size(body[instruction.operands[1]].type, hbm_only=True) if written else 0
    operands = {o: body[o].type for o in instruction.operands if o in body}
    return written + sum(size(kind, hbm_only=True) for kind in operands.values())

  return of_computation(module.entry)


def _unplaced(shape: str) -> str:
  return re.sub(r"S\(\d+\)", "", shape)
