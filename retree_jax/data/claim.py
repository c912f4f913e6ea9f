"""An output folder belongs to one run: a file in it says which, and a lease keeps a second process out while the first writes.

`hold` is what a command does first, `check` tells whether the folder is free or holds this very run, and `record` makes it this
run's. Another run's files are never touched.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping

from etils import epath

from retree_jax import sharding
from retree_jax.data import lease, writing

# What systems leave in folders that a person would call empty.
_SYSTEM_FILES = frozenset(
  {".DS_Store", ".Spotlight-V100", ".Trashes", ".fseventsd", ".localized", "Thumbs.db", "desktop.ini", "lost+found"}
)


@contextlib.contextmanager
def hold(out, activity: str) -> Iterator[lease.Lease | None]:
  """Holds an output folder for this job while the context lasts. All processes of the job must call it.

  Args:
    out: the folder, local or bucket.
    activity: what the job does there, for the message that a second one prints, e.g. "generating".

  Yields:
    The lease on process 0, None on others.

  Raises:
    ValueError: another job that lives writes there, or `out` is a file; on all processes, so that none waits for ever.
  """
  with contextlib.ExitStack() as stack:
    held = []
    sharding.on_first_process(lambda: held.append(stack.enter_context(lease.hold(out, activity))))
    yield held[0] if held else None


def check(out, identity: Mapping, name: str = "run.json", inside: str = "") -> dict | None:
  """Tells whether a folder is free or holds this very run.

  Args:
    out: the folder.
    identity: JSON-able: everything that the folder's content depends on.
    name: of the file that `record` writes.
    inside: subfolder that has to be empty where the file is missing; the whole folder by default.

  Returns:
    What `record` was given beside the identity, e.g. {"num": 16}; None where the folder is free.

  Raises:
    ValueError: the folder holds something else; the sentence names the first difference.
  """
  out = epath.Path(out)
  path, folder = out / name, out / inside if inside else out
  if not path.exists():
    if folder.exists() and (not folder.is_dir() or any(_is_content(p.name) for p in folder.iterdir())):
      raise ValueError(f"{folder} holds files that this command did not write, and it never overwrites any: use another --out")
    return None
  try:
    stored = dict(json.loads(path.read_text()))
    # Earlier files of samples and labels hold the identity alone.
    recorded = stored.pop("identity") if "identity" in stored else dict(stored)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is damaged: use another --out, or remove the folder") from error
  if differ := difference(recorded, json.loads(json.dumps(identity))):
    raise ValueError(f"{out} holds another run ({differ}): use another --out, or that run's models and settings")
  return stored


def record(out, identity: Mapping, name: str = "run.json", **facts) -> None:
  """Makes a folder this run's.

  Args:
    out, identity, name: as for `check`, which must have been asked before.
    **facts: JSON-able: what may change from call to call, e.g. the number of samples.
  """
  writing.write_json(epath.Path(out) / name, {**facts, "identity": identity})


def difference(theirs, ours, name: str = "") -> str:
  """The first place where two JSON values differ, in words; "" where they are equal."""
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for key in sorted({*theirs, *ours}):
      if words := difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key):
        return words
    return ""
  return "" if theirs == ours else f"{name} is {theirs!r} there and {ours!r} here"


def _is_content(name: str) -> bool:
  """Whether a file counts: neither left by the system, nor a lease, nor half-written by a process that was killed."""
  ours = name.startswith(".") and (name.startswith(lease.NAME) or name.endswith(writing.UNFINISHED))
  return not (ours or name in _SYSTEM_FILES or name.startswith("._"))
