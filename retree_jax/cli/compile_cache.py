"""JAX's persistent compilation cache, on by default for every command: what one run has compiled, the next one reads.

The cache lies in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`), in a folder for this kind of machine, since code
for one CPU may not run on another. `--nocompile_cache`, a flag of every command, turns the cache off. JAX's own variables come
first: JAX_ENABLE_COMPILATION_CACHE=0 turns it off too, JAX_COMPILATION_CACHE_DIR moves it.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import time

FLAG = "--nocompile_cache"
_DAYS = 30  # after which a compiled program is removed


def take_flag() -> None:
  """Takes `FLAG`, which no command defines, out of the command line, and turns the cache off where it was there."""
  if FLAG in sys.argv[1:]:
    sys.argv.remove(FLAG)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"


def use() -> None:
  """Names the folder to JAX by its variable, so that subprocesses use it too. Must be called before JAX is imported; a folder
  that cannot be written leaves the cache off."""
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") is not None:
    return
  if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "no", "off", "f", "n"):
    return
  try:
    made = folder()
    made.mkdir(parents=True, exist_ok=True)
    _remove_old(made)
  except (OSError, RuntimeError):  # no home, or one that belongs to somebody else
    return
  if os.access(made, os.W_OK):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(made)


def folder() -> pathlib.Path:
  """Where compiled programs of this kind of machine are kept.

  Raises:
    RuntimeError: the user has no home folder.
  """
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "retree_jax" / f"compiled-{_machine()}"


def _machine() -> str:
  """A name for the instructions that this CPU knows."""
  known = platform.machine()
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith(("flags", "Features", "model name")):
        known += line
      if not line:  # the other cores are the same
        break
  return hashlib.sha256(known.encode()).hexdigest()[:12]


def _remove_old(where: pathlib.Path) -> None:
  limit = time.time() - _DAYS * 24 * 3600
  for path in where.iterdir():
    with contextlib.suppress(OSError):  # another process was quicker
      if path.stat().st_mtime < limit:
        path.unlink()
