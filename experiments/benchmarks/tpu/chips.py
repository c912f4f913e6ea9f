"""Cloud TPU chips: the vendor's figures, and the topologies that the compiler knows by name.

Sources, read in November 2026: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e (peak bfloat16, HBM, interconnect, ports).
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU chip.

  Attributes:
    flops: peak of bfloat16 matrix products, FLOP/s.
    memory: HBM, bytes (the vendor's GB are read as GiB: the compiler's limit on v5e is 15.75 GiB).
    bandwidth: of that memory, bytes/s.
    interconnect: of all links together, one way, bytes/s.
    links: their number.
    host: chips of a host, as a grid.
  """

  flops: float
  memory: int
  bandwidth: float
  interconnect: float
  links: int
  host: tuple[int, ...]

  @property
  def ring(self) -> float:
    """Bytes/s that a chip sends in a ring through all chips, both ways at once: two of its links. Every slice has such a ring;
    what collectives gain from the other links is left out."""
    return 2 * self.interconnect / self.links


CHIPS = {
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8, 4, (2, 2, 1)),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 4800e9 / 8, 6, (2, 2, 1)),
  "v6e": Chip(918e12, 32 * 2**30, 1640e9, 3584e9 / 8, 4, (2, 2, 1)),
}


def parse(topology: str) -> tuple[Chip, int]:
  """(chip, number of chips) of a topology such as "v5e:2x4".

  Raises:
    ValueError: a name that is none, or a chip that is not in the table.
  """
  name, _, grid = topology.partition(":")
  if name not in CHIPS or not all(n.isdigit() and int(n) for n in grid.split("x")):
    raise ValueError(
      f"--topology={topology} is unknown: write a chip of {', '.join(CHIPS)} and its grid, as v5e:2x4 or v5p:2x2x1"
    )
  return CHIPS[name], math.prod(int(n) for n in grid.split("x"))


def devices(topology: str) -> list:
  """Devices of a topology, for a mesh to compile for; nothing can be computed on them.

  Raises:
    ValueError: a topology that libtpu does not know, or no libtpu.
  """
  from jax.experimental import topologies

  chip, count = parse(topology)
  # A host of v5e, v5p or v6e has a grid of four chips; a slice of one chip is a part of such a host.
  options = {} if count >= math.prod(chip.host) else {"chips_per_host_bounds": [1, 1, 1]}
  try:
    return list(topologies.get_topology_desc(topology_name=topology, platform="tpu", **options).devices)
  except Exception as error:  # JAX raises its own, without a common class
    raise ValueError(f"--topology={topology} cannot be compiled for ({' '.join(str(error).split())[:300]})") from error
