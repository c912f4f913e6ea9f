"""Scores of a task on fixed examples, over a mesh of any number of hosts."""

import jax
import numpy as np
from clu import metrics as clu_metrics

from retree_jax import sharding

_IN_MEMORY = 64  # examples read at once where they are not kept


class Evaluator:
  """Means of `task.evaluate` over held-out examples, and over as many training examples: their gap is memorisation.

  Args:
    task: from `tasks.make`.
    examples: `retree_jax.data.examples.Examples`.
    mesh: devices; all hosts take part.
    batch_size: about so many examples per compiled call, at most 16.
    num: greatest number of examples per split. They are read once and kept; None = all, which are read anew each time.
  """

  def __init__(self, task, examples, mesh, batch_size: int, num: int | None):
    self._examples, self._mesh, self._num = examples, mesh, num
    self._step = jax.jit(task.evaluate, out_shardings=sharding.replicated(mesh))
    self._rows = mesh.size * max(1, min(batch_size, 16) // mesh.size)
    self._kept = {}

  def __call__(self, params) -> dict[str, float]:
    """{"heldout_loss", "training_loss", ...}: means over both splits, padding left out.

    Args:
      params: averaged parameters, on the mesh.
    """
    scores = {}
    for split, prefix in (("heldout", "heldout"), ("train", "training")):
      scores |= {f"{prefix}_{name}": value for name, value in self._means(params, split).items()}
    return scores

  def preview_batch(self) -> dict[str, np.ndarray]:
    """The held-out examples, uint8 arrays [n, H, W, C] by field."""
    (batch,) = self._batches("heldout")
    return batch

  def _batches(self, split):
    if self._num is None:
      return self._examples.fixed(split, self._examples.num_heldout, _IN_MEMORY // self._rows * self._rows or self._rows)
    if split not in self._kept:
      self._kept[split] = list(self._examples.fixed(split, self._num, self._num))
    return self._kept[split]

  def _means(self, params, split) -> dict[str, float]:
    averages, first = {}, 0
    for arrays in self._batches(split):
      total = len(next(iter(arrays.values())))
      for start in range(0, total, self._rows):
        index = np.arange(start, start + self._rows)
        rows = np.minimum(index, total - 1)
        # Every host holds the same examples, and gives the rows of its own devices.
        local = np.array_split(rows, jax.process_count())[jax.process_index()]
        batch = sharding.to_global({f: a[local] for f, a in arrays.items()}, self._mesh)
        out = jax.device_get(self._step(params, batch, (first + rows).astype(np.int32)))
        for name, values in out.items():
          average = clu_metrics.Average.from_model_output(values=values, mask=index < total)
          averages[name] = average if name not in averages else averages[name].merge(average)
      first += total
    return {name: float(a.compute()) for name, a in averages.items()}
