"""What every command line of the project shares: one sentence for bad input, no traceback, a non-zero exit."""

import errno
import os
import sys
from collections.abc import Callable


def run(function: Callable[[], None]) -> int:
  """Runs a command; returns its exit code: 0, 1 for a failed run, 2 for bad input, 130 for Ctrl-C.

  Set RETREE_JAX_TRACEBACK=1 to see where an error was raised.
  """
  try:
    function()
    return 0
  except KeyboardInterrupt:
    return _complain("stopped by the keyboard; rerun the same command to go on", 130)
  except Exception as error:
    if os.environ.get("RETREE_JAX_TRACEBACK"):
      raise
    return _complain(*_sentence(error))


def _sentence(error: Exception) -> tuple[str, int]:
  text = " ".join(str(error).split())
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  if full or "No space left" in text or "RESOURCE_EXHAUSTED: write" in text:
    return "no space is left on the disk: free some, or use another folder; what was saved before is intact", 1
  if isinstance(error, PermissionError):
    return f"no permission for {error.filename}: use a folder that you may write to", 2
  if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
    return (
      "the device's memory is too small: lower config.train.batch_size, raise config.train.accumulate, or set "
      "config.model.remat=True"
    ), 1
  if isinstance(error, (ValueError, OSError)):
    return text, 2
  if isinstance(error, RuntimeError) and type(error).__module__.startswith("retree_jax"):
    return text, 1
  return f"{type(error).__name__}: {text[:600]} (RETREE_JAX_TRACEBACK=1 shows where)", 1


def _complain(text: str, code: int) -> int:
  print(f"error: {text}", file=sys.stderr, flush=True)
  return code


def parse(flags_object, argv: list[str]) -> list[str]:
  """absl flags and the config file, with one sentence for what they refuse.

  Raises:
    ValueError: a flag or config field that does not exist, or a value of the wrong type.
  """
  from absl import flags

  if {"--help", "-help", "-h"} & set(argv[1:]) and "help" not in flags_object:
    print(f"{sys.modules['__main__'].__doc__ or ''}\n{flags_object.main_module_help()}")
    raise SystemExit(0)
  for flag, following in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, value = flag.partition("=")
    path = (value if equals else following).partition(":")[0]
    if name in ("--config", "-config") and path and not os.path.isfile(path):
      raise ValueError(f"there is no config file {path}: name one, e.g. --config=configs/tree.py, from the folder it lies in")
  try:
    return flags_object(argv)
  except flags.Error as error:
    text = str(error)
    if "Traceback" in text:  # what a config file raised, wrapped by ml_collections: its last line is the sentence
      raise ValueError(text.strip().splitlines()[-1].split("Error: ", 1)[-1]) from error
    raise ValueError(f"{text}; see --help") from error
  except (KeyError, AttributeError, TypeError, FileNotFoundError) as error:
    text = _plain(str(error.args[0] if error.args else error))
    raise ValueError(f"{text} (in {' '.join(a for a in argv[1:] if a.startswith('--config')) or 'the config'})") from error


def _plain(text: str) -> str:
  """What ml_collections says of a field that a config lacks, quoted twice and over two lines, as a sentence."""
  text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split()).strip("\"'")
  _, meant, guess = text.partition("Did you mean ")
  if meant:
    return f"the config has no such field: did you mean {guess}"
  return f"the config has no field {text!r}: see retree_jax/config/defaults.py" if text.isidentifier() else text
