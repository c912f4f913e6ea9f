"""From a lowered program to a row of the report: compile, keep what the compiler said, and work out what it means on a chip."""

import gzip
import importlib.metadata
import json
import pathlib
import time

from experiments.benchmarks.tpu import chips, hlo
from experiments.benchmarks.tpu.programs import Program

_MEMORY = ("argument", "output", "alias", "temp", "generated_code")


def compiled(program: Program, topology: str, folder: pathlib.Path) -> dict:
  """What the compiler says of a program: "text" (HLO), "cost", "memory" and "seconds", or "error".

  Kept in `folder`, by the program's hash, the topology and the version of libtpu, so that nothing is compiled twice.
  """
  name = f"{program.key}-{topology.replace(':', '-')}-{importlib.metadata.version('libtpu')}"
  facts, text = folder / f"{name}.json", folder / f"{name}.hlo.gz"
  if facts.exists():
    found = json.loads(facts.read_text())
    return found if "error" in found else found | {"text": gzip.decompress(text.read_bytes()).decode()}
  started = time.perf_counter()
  try:
    made = program.lowered.compile()
  except Exception as error:  # the compiler's own classes; anything else is no verdict on the program
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found = {"error": " ".join(str(error).split())[:600]}
  else:
    cost, memory = made.cost_analysis(), made.memory_analysis()
    found = {
      "seconds": time.perf_counter() - started,
      "cost": {n: cost[n] for n in ("flops", "bytes accessed")},
      "memory": {n: getattr(memory, f"{n}_size_in_bytes") for n in _MEMORY},
    }
  folder.mkdir(parents=True, exist_ok=True)
  if "error" not in found:
    text.write_bytes(gzip.compress(made.as_text().encode()))
  facts.write_text(json.dumps(found))  # last: its presence says that the text is whole
  return found if "error" in found else found | {"text": made.as_text()}


def row(program: Program, found: dict, topology: str, fsdp: int) -> dict:
  """What a program costs on a topology.

  Args:
    program: the program.
    found: from `compiled`.
    topology: e.g. "v5e:2x4".
    fsdp: number of devices that share one copy of the parameters.

  Returns:
    Bytes and FLOPs are those of one chip and one run: "peak_bytes" of "chip_bytes", "model_flops", "executed_flops",
    "hbm_bytes" (buffers in HBM), "xla_bytes" (XLA's own count), "sent_bytes" beside "least_sent_bytes", "collectives" {kind:
    [number, bytes reduced or gathered]}; "seconds" {"arithmetic", "memory", "interconnect"} at the chip's full speed; "mfu" and
    "images_per_second" if the longest of the three hides the others. Where the program does not compile, "error".
  """
  chip, count = chips.parse(topology)
  out = {
    "chips": count,
    "images": program.images,
    "parameters": program.parameters,
    "chip_bytes": chip.memory,
    "model_flops": program.flops / count,
  }
  if "error" in found:
    return out | {"error": found["error"]}
  memory = found["memory"]
  moved = hlo.collectives(found["text"], count)
  kinds: dict[str, list] = {}
  for collective in moved:
    total = kinds.setdefault(collective.kind, [0, 0])
    total[0] += collective.times
    total[1] += collective.bytes * collective.times
  hbm, sent = hlo.traffic(found["text"]), sum(c.sent for c in moved)
  executed = found["cost"]["flops"] * program.rounds
  # XLA's count can be the smaller one: it does not see every branch of a conditional.
  arithmetic = max(executed, program.flops / count)
  seconds = {"arithmetic": arithmetic / chip.flops, "memory": hbm / chip.bandwidth, "interconnect": sent / chip.ring}
  longest = max(seconds.values())
  return out | {
    "peak_bytes": sum(memory.values()) - 2 * memory["alias"],
    "executed_flops": executed,
    "hbm_bytes": hbm,
    "xla_bytes": found["cost"]["bytes accessed"] * program.rounds,
    "collectives": kinds,
    "sent_bytes": sent,
    "least_sent_bytes": least_sent(program, count, fsdp),
    "seconds": seconds,
    "mfu": program.flops / count / chip.flops / longest,
    "images_per_second": program.images / longest,
    "compile_seconds": found["seconds"],
  }


def least_sent(program: Program, devices: int, fsdp: int) -> float:
  """Bytes that each device must send in one run, in rings and in the network's own precision.

  Training: gradients are summed over all devices; parameters that are split over `fsdp` devices are gathered once, and their
  gradients scattered instead. In use: split parameters are gathered once.
  """
  split, whole = program.sharded * program.width, (program.parameters - program.sharded) * program.width
  gather = split * (fsdp - 1) / fsdp
  if not program.trains:
    return gather
  copies = devices // fsdp
  return 2 * gather + 2 * (split / fsdp) * (copies - 1) / copies + 2 * whole * (devices - 1) / devices
