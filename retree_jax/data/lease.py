"""One writer at a time for a folder: a lease file that says who writes there, and that they are alive.

`FOLDER/.lease` holds the host, process id and start time of the process that writes, a random token and a counter that grows
every `BEAT` seconds. A second process is refused while the first lives. After a crash or a kill the lease is stale and is taken
over: at once where the process ran on this machine, otherwise after watching for `SILENCE` seconds that the counter stands
still, so that clocks need not agree. On disks the file is created atomically. In buckets nothing can be: the last of two
writers wins, and both read the object again before they go on, which is the best effort possible there.
"""

import contextlib
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from retree_jax.data import writing

NAME = ".lease"
BEAT = 10.0  # seconds between two signs of life
SILENCE = 35.0  # seconds without one after which a process on another machine counts as dead
_SETTLE = 2.0  # seconds in which two uploads to a bucket may overtake each other


class LostError(RuntimeError):
  """Another process took the folder over, for instance after this one was suspended for minutes."""


class Lease:
  """A held lease; see `hold`."""

  def __init__(self, path: epath.Path, facts: dict):
    self._path, self._facts, self._beats = path, facts, 0
    self._lost, self._end = False, threading.Event()
    self._thread = threading.Thread(target=self._beat, name=f"lease of {path.parent}", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises LostError if another process has taken the folder over: nothing may be written there any more."""
    if self._lost:
      raise LostError(
        f"{self._path.parent} was taken over by another process while this one did not respond: let that one go on, or stop it "
        "and rerun the same command"
      )

  def _beat(self):
    while not self._end.wait(BEAT):
      self._beats += 1
      try:
        found = _read(self._path)
        text = _text(self._facts, self._beats)
        if found is None:  # somebody tidied up
          self._lost = not _create(self._path, text)
        elif found.get("token") == self._facts["token"]:
          writing.write_text(self._path, text)
        else:
          self._lost = True
      except OSError:  # a full disk or a network down for a moment; the next beat tries again
        continue
      if self._lost:
        return

  def _release(self):
    self._end.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if (_read(self._path) or {}).get("token") == self._facts["token"]:
        self._path.unlink()


@contextlib.contextmanager
def hold(folder, what: str) -> Iterator[Lease]:
  """Holds a folder for this process while the context lasts. In a job of several hosts, process 0 alone calls it.

  Args:
    folder: local path or bucket URL; made if it does not exist, and removed again if it is still empty at the end.
    what: what this process does there, for the message that the other one prints: "training", "generating".

  Yields:
    The lease. Call its `check()` before writing something that must not mix with another process's files.

  Raises:
    ValueError: a process that lives writes there already, or `folder` is a file.
  """
  folder = epath.Path(folder)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"{folder} is a file: name another folder")
  made = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / NAME
  facts = {**_machine(), "pid": os.getpid(), "started": _started(os.getpid()), "what": what, "token": uuid.uuid4().hex}
  facts["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
  try:
    while not _create(path, _text(facts, 0)):
      found = _read(path)
      if found is not None and _lives(path, found):
        raise ValueError(
          f"{folder} is in use: process {found.get('pid')} on {found.get('host')} has been {found.get('what')} there since "
          f"{found.get('since')}; wait until it ends, stop it, or name another folder"
        )
      if found is not None:
        _remove_stale(path, found)
    lease = Lease(path, facts)
    try:
      yield lease
    finally:
      lease._release()
  finally:
    if made:
      with contextlib.suppress(OSError):
        os.rmdir(folder)  # only if it is empty; a bucket has no folders


def _text(facts: dict, beats: int) -> str:
  return json.dumps({**facts, "beats": beats}) + "\n"


def _read(path: epath.Path) -> dict | None:
  """What a lease says; None if there is none; {} if it is damaged."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _create(path: epath.Path, text: str) -> bool:
  """Writes a lease where none is; False if there is one."""
  if "://" in str(path):
    if path.exists():
      return False
    path.write_text(text)
    time.sleep(_SETTLE)
    return path.read_text() == text
  beside = f"{os.fspath(path)}.{uuid.uuid4().hex[:12]}"
  try:
    with open(beside, "x", encoding="utf-8") as file:
      file.write(text)
    os.link(beside, path)  # unlike a rename, this fails where the name is taken; the file appears with its content
    return True
  except FileExistsError:
    return False
  except OSError:  # some network and memory-card file systems have no hard links
    if not os.path.exists(beside):
      raise
    try:
      with open(path, "x", encoding="utf-8") as file:
        file.write(text)
      return True
    except FileExistsError:
      return False
  finally:
    pathlib.Path(beside).unlink(missing_ok=True)


def _remove_stale(path: epath.Path, seen: dict) -> None:
  """Removes the lease that was judged stale, and no other that has come in its place meanwhile."""
  with _alone(path.parent):
    if _read(path) == seen:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
  """Keeps other processes from removing a lease at the same time, where the system can (not in buckets)."""
  try:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
  except (ImportError, OSError):
    yield
    return
  try:
    with contextlib.suppress(OSError):  # some network disks lock no folders
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _lives(path: epath.Path, found: dict) -> bool:
  """Whether the holder of a lease is alive."""
  if found and all(found.get(k) == v for k, v in _machine().items()) and (alive := _running(found)) is not None:
    return alive
  holder = f"process {found['pid']} on {found.get('host')}" if "pid" in found else "a process that left a damaged lease"
  text = f"{path.parent} was last used by {holder}: watching for {SILENCE:.0f} s whether it still runs"
  print(text, file=sys.stderr, flush=True)
  end = time.monotonic() + SILENCE
  while time.monotonic() < end:
    time.sleep(min(1.0, SILENCE / 10))
    now = _read(path)
    if now is None:
      return False
    if now != found:
      return True
  return False


def _running(found: dict) -> bool | None:
  """Whether the process that a lease of this machine names runs; None where that cannot be told."""
  if sys.platform == "win32":  # os.kill would end the process
    return None
  try:
    os.kill(int(found["pid"]), 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # it runs, for another user
  except (KeyError, TypeError, ValueError, OverflowError):
    return None
  return _started(int(found["pid"])) == found.get("started")


def _machine() -> dict[str, str]:
  """What must be equal for a process id to mean the same process: host, start of the system, and container."""
  facts = {"host": platform.node(), "boot": "", "container": ""}
  with contextlib.suppress(OSError):
    facts["boot"] = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts["container"] = os.readlink("/proc/self/ns/pid")
  return facts


def _started(pid: int) -> str:
  """When a process started, in the system's own count; tells it from a later one with the same id. "" where unknown."""
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return ""
  return text.rpartition(")")[2].split()[19]  # field 22; the program's name, in brackets, may hold blanks
