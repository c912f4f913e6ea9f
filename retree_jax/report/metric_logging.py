"""What a run says of itself: console, metrics.jsonl, TensorBoard and preview pictures. Process 0 only.

clu's metric writers need TensorFlow, so these few lines stand in for them.
"""

import json
import sys

import jax
import numpy as np
from etils import epath

from retree_jax.data import writing


class Writers:
  """Scalars and pictures of one run; every method is a no-op on processes other than 0.

  Args:
    workdir: folder of the run (local or bucket).
    start_step: the step that the run resumes from; lines of metrics.jsonl beyond it are dropped, since they describe steps
      that are about to be taken again.
    tensorboard: also write TensorBoard events.
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
    self._flush()
    if tensorboard:
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=start_step + 1)
    if total_steps:
      from tqdm import tqdm

      self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())

  def _flush(self):
    writing.write_text(self._jsonl, "".join(json.dumps(line) + "\n" for line in self._lines))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Writes one line of numbers, NaN as null (JSON has no NaN)."""
    if not self._active:
      return
    numbers = {k: (float(v) if np.isfinite(v) else None) for k, v in values.items()}
    self._lines.append({"step": int(step), **numbers})
    self._flush()
    if self._board:
      for name, value in numbers.items():
        if value is not None:
          self._board.add_scalar(name, value, step)
    self.say(f"step {step}: " + ", ".join(f"{k} {v:.4g}" if v is not None else f"{k} nan" for k, v in numbers.items()))

  def picture(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes a uint8 picture [H, W, 3 or 1] to previews/NAME_STEP.png and to TensorBoard."""
    if not self._active:
      return
    writing.write_png(self._workdir / "previews" / f"{name}_{step:07d}.png", image)
    if self._board:
      self._board.add_image(name, image, step, dataformats="HWC")

  def progress(self, step: int, **postfix) -> None:
    """Moves the bar to `step`."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      if postfix:
        self._bar.set_postfix(postfix, refresh=False)

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    if not self._active:
      return
    if self._bar is not None and not self._bar.disable:
      self._bar.write(text, file=sys.stderr)
    else:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Flushes and closes everything."""
    if self._board is not None:
      self._board.close()
    if self._bar is not None:
      self._bar.close()


def _read_lines(path) -> list[dict]:
  """The lines of a metrics file; a half-written last line, from a crash, is left out."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines
