"""Profiler traces of a few training steps."""

import jax
from etils import epath


class Profiler:
  """A trace of a window of steps into WORKDIR/profile, for `tensorboard --logdir` or Perfetto.

  Args:
    workdir: folder of the run.
    first: step that the run starts from.
    start: steps after `first` before the window.
    steps: length of the window; 0 for no trace.
  """

  def __init__(self, workdir, first: int, start: int, steps: int):
    self._start, self._stop = (first + start, first + start + steps) if steps else (None, None)
    self._path, self._running = str(epath.Path(workdir) / "profile"), False

  def at(self, step: int, state) -> None:
    """Call it after every step. Devices run behind the host, so at both ends of the window it waits for `state`."""
    if step == self._start:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._path)
      self._running = True
    elif self._running and step >= self._stop:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Ends a trace that is still running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
