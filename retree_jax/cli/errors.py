"""What every command line of the project shares: one sentence for bad input, no traceback, a non-zero exit."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from retree_jax.cli import compile_cache, config_files


def run(function: Callable[[], int | None]) -> int:
  """Runs a command, with the compilation cache on; returns its exit code: what the command returns (None = 0), 1 for a failed
  run, 2 for bad input, 130 for Ctrl-C.

  Set RETREE_JAX_TRACEBACK=1 to see where an error was raised.
  """
  compile_cache.take_flag()
  sys.argv[1:] = expand_home(sys.argv[1:])
  compile_cache.use()
  try:
    return function() or 0
  except KeyboardInterrupt:
    return _complain("stopped by the keyboard; rerun the same command to go on", 130)
  except Exception as error:
    if os.environ.get("RETREE_JAX_TRACEBACK"):
      raise
    return _complain(*_sentence(error))


def expand_home(arguments: Sequence[str]) -> list[str]:
  """Replaces `~` and `~user` at the start of every path on a command line by the home folder.

  Shells do so only at the start of a word, not after `--out=`, `folder:`, the `+` that joins data sources or a comma.
  """
  tilde = re.compile(r"(^|^--?[\w.]+=|folder:|,)(~[^/+,]*)(?=[/+,]|$)")
  return [tilde.sub(lambda match: match[1] + os.path.expanduser(match[2]), argument) for argument in arguments]


def _sentence(error: Exception) -> tuple[str, int]:
  text = " ".join(str(error).split())
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  if full or "No space left" in text or "RESOURCE_EXHAUSTED: write" in text:
    return "no space is left on the disk: free some, or use another folder; what was saved before is intact", 1
  if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOTDIR):
    why = "lies on a file system that is read-only" if error.errno == errno.EROFS else "lies under a file, not under a folder"
    return f"{error.filename} {why}: use another folder", 2
  if isinstance(error, PermissionError):
    return f"no permission for {error.filename}: change its permissions, or use another file or folder", 2
  if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
    return (
      "the device's memory is too small: to train, lower config.train.batch_size, raise config.train.accumulate, or (tree, "
      "fundus) set config.model.remat=True; to generate, lower --batch_size; to sample, lower config.sampler.batch_size"
    ), 1
  if (platforms := os.environ.get("JAX_PLATFORMS")) and _has_no_device(error, text):
    return (
      f"JAX_PLATFORMS={platforms} asks for a device that JAX does not find here: unset JAX_PLATFORMS to use the devices that "
      "there are, or install JAX for that device, e.g. pip install 'retree-jax[cuda13]'"
    ), 2
  if isinstance(error, (ValueError, OSError)):
    return text, 2
  if isinstance(error, RuntimeError) and type(error).__module__.startswith("retree_jax"):
    return text, 1
  return f"{type(error).__name__}: {text[:600]} (RETREE_JAX_TRACEBACK=1 shows where)", 1


def _has_no_device(error: Exception, text: str) -> bool:
  """Whether JAX could not start the platform that JAX_PLATFORMS names; of a missing CUDA, JAX 0.10 says `AssertionError`."""
  if isinstance(error, RuntimeError):
    return "Unable to initialize backend" in text
  frames = traceback.extract_tb(error.__traceback__)
  return isinstance(error, AssertionError) and bool(frames) and frames[-1].filename.endswith("xla_bridge.py")


def _complain(text: str, code: int) -> int:
  print(f"error: {text}", file=sys.stderr, flush=True)
  return code


def parse(flags_object, argv: Sequence[str], doc: str | None = None) -> list[str]:
  """Reads a command line: absl flags, the config file and its fields. Prints the help and exits if --help is among them.

  Args:
    flags_object: the flags that the command has.
    argv: program name and flags.
    doc: text above the list of flags in the help.

  Returns:
    [program name].

  Raises:
    ValueError: a flag or config field that does not exist, a value of the wrong type, or a word that is not a flag.
  """
  from absl import flags

  argv = [*argv[:1], *expand_home(argv[1:])]
  if {"--help", "-help", "-h"} & set(argv[1:]):
    print(f"{doc or ''}\n{flags_object.get_help(include_special_flags=False)}")
    raise SystemExit(0)
  argv = config_files.resolve(argv)
  try:
    rest = flags_object(argv)
  except flags.Error as error:
    text = str(error)
    if "Traceback" in text:  # what a config file raised, wrapped by ml_collections: its last line is the sentence
      raise ValueError(text.strip().splitlines()[-1].split("Error: ", 1)[-1]) from error
    raise ValueError(f"{text}; see --help") from error
  except (KeyError, AttributeError, TypeError, FileNotFoundError) as error:
    text = _plain(str(error.args[0] if error.args else error))
    raise ValueError(f"{text} (in {' '.join(a for a in argv[1:] if a.startswith('--config')) or 'the config'})") from error
  if rest[1:]:
    raise ValueError(f"{rest[1]!r} is not a flag: write --flag=value; see --help")
  return rest


def _plain(text: str) -> str:
  """What ml_collections says of a field that a config lacks, quoted twice and over two lines, as a sentence."""
  text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split()).strip("\"'")
  _, meant, guess = text.partition("Did you mean ")
  if meant:
    return f"the config has no such field: did you mean {guess}"
  return f"the config has no field {text!r}: see retree_jax/config/defaults.py" if text.isidentifier() else text
