"""Logs a training run: to the console, metrics.jsonl, TensorBoard and preview pictures. Process 0 only.

It replaces clu's metric writers, which need TensorFlow.
"""

import contextlib
import json
import sys

import jax
import numpy as np
from etils import epath

from retree_jax.data import writing


class MetricLogger:
  """Logs scalars and pictures of one run; every method does nothing on processes other than 0.

  Args:
    workdir: folder of the run, on a disk or in a bucket.
    start_step: the step from which the run resumes; later lines of metrics.jsonl are dropped, because they describe steps
      that will be repeated.
    tensorboard: whether to write TensorBoard events too.
    total_steps: length of the progress bar; None for no bar.
  """

  def __init__(self, workdir, start_step: int = 0, tensorboard: bool = True, total_steps: int | None = None):
    self._active = jax.process_index() == 0
    self._board = self._bar = None
    if not self._active:
      return
    self._workdir = epath.Path(workdir)
    self._jsonl = self._workdir / "metrics.jsonl"
    self._lines = [line for line in _read_lines(self._jsonl) if line["step"] <= start_step]
    self._write_lines()
    if tensorboard:
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=start_step + 1)
    if total_steps:
      from tqdm import tqdm

      self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

  def _write_lines(self):
    writing.write_text(self._jsonl, "".join(json.dumps(line) + "\n" for line in self._lines))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Adds one line of numbers to metrics.jsonl, NaN as null, and shows it on the console."""
    if not self._active:
      return
    numbers = writing.json_values({name: float(value) for name, value in values.items()})
    self._lines.append({"step": int(step), **numbers})
    self._write_lines()
    if self._board:
      for name, value in numbers.items():
        if value is not None:
          self._board.add_scalar(name, value, step)
    self.say(f"step {step}: " + ", ".join(f"{name} {float(value):.4g}" for name, value in values.items()))

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes a uint8 picture [H, W, 3 or 1] to previews/NAME_STEP.png and to TensorBoard."""
    if not self._active:
      return
    writing.write_png(self._workdir / "previews" / f"{name}_{step:07d}.png", image)
    if self._board:
      self._board.add_image(name, image, step, dataformats="HWC")

  def progress(self, step: int, **postfix) -> None:
    """Moves the progress bar to `step`; `postfix` is shown behind it."""
    if self._bar is not None:
      with contextlib.suppress(OSError):
        self._bar.update(step - self._bar.n)
        if postfix:
          self._bar.set_postfix(postfix, refresh=False)

  def say(self, text: str) -> None:
    """Prints a line to stderr, above the progress bar."""
    if not self._active:
      return
    with contextlib.suppress(OSError):  # a terminal that was closed must not keep a run from being saved
      if self._bar is not None and not self._bar.disable:
        self._bar.write(text, file=sys.stderr)
      else:
        print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Closes TensorBoard's file and the progress bar."""
    if self._board is not None:
      self._board.close()
    if self._bar is not None:
      self._bar.close()


def _read_lines(path) -> list[dict]:
  """The lines of a metrics file, without lines that are not JSON."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines
