"""Log lines about data that are written once per set of files, not once per file."""

import threading

from absl import logging

_said: set[tuple[str, str]] = set()
_lock = threading.Lock()


def once(source: str, kind: str, sentence: str) -> None:
  """Logs a warning unless one of this kind was logged about this source before, in this process.

  Args:
    source: the folder or data set.
    kind: what the remark is about.
    sentence: the log line.
  """
  with _lock:
    if (source, kind) in _said:
      return
    _said.add((source, kind))
  logging.warning("%s", sentence)
