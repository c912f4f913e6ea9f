"""A page to play with, in the browser: generate pairs, draw a vessel tree and see it painted, find the vessels of a photograph.

    retree-jax demo                                      # the shipped models, at http://127.0.0.1:7860/
    retree-jax demo --tree runs/tree --fundus runs/fundus --train EYES
    retree-jax demo --host 0.0.0.0 --port 8000           # for every computer that reaches this one: there is no password

Needs the extra `demo`: pip install 'retree-jax[demo]'. Nothing leaves this computer. Pictures that are uploaded stay in memory,
and are forgotten within about an hour.
"""

import importlib.util
import sys
from collections.abc import Sequence

from absl import flags

from retree_jax.cli import cpu, errors, model_flags

_NEEDED = ("starlette", "uvicorn")


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  f = flags.FlagValues()
  model_flags.define(f)
  flags.DEFINE_string(
    "train",
    None,
    "Folder on which the models were trained: adds the nearest training eye, and shows its photographs.",
    flag_values=f,
  )
  flags.DEFINE_string(
    "segmenter", "shipped:segmentation", "Workdir or name of the segmentation stage; 'none' leaves it out.", flag_values=f
  )
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for other computers too.", flag_values=f)
  flags.DEFINE_integer("port", 7860, "Port to listen at.", lower_bound=0, upper_bound=65535, flag_values=f)
  return f


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, loads the models and serves the page until it is stopped.

  Args:
    argv: program name and flags; `sys.argv` by default.

  Raises:
    ValueError: bad flags or models, a port in use, or packages that are missing.
  """
  f = define_flags()
  errors.parse(f, sys.argv if argv is None else argv, __doc__)
  if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ValueError(
      f"the page needs {' and '.join(missing)}: pip install {' '.join(missing)} (the extra `demo` of retree-jax)"
    )
  from retree_jax.inference import dataset_writer
  from retree_jax.page import server, studio

  cpu.dispatch_inline()
  paths = model_flags.paths(f)
  segmenter = None if f.segmenter in ("", "none") else f.segmenter
  with server.listen(f.host, f.port) as listening:  # first, since loading the models takes a while
    loaded = studio.Studio(paths if any(paths.values()) else dataset_writer.shipped(), segmenter, f.train)
    server.run(loaded, listening)


if __name__ == "__main__":
  cpu.restart_with_settings()
  sys.exit(errors.run(main))
