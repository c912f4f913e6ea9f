"""Other processes for work on single trees that Python would otherwise do one after the other."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading


class Workers:
  """Calls functions in other processes where there are some, else in the calling thread.

  Use as a context manager, which ends the processes. They start at the first call.

  Args:
    count: processes; 0 for none. Python starts them by importing the program's main module anew, so a script must then guard
      what it does with `if __name__ == "__main__":`.
  """

  def __init__(self, count: int = 0):
    self.count = count
    self._pool = None
    if count:
      self._pool = concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=prepare)

  def submit(self, function, *arguments) -> concurrent.futures.Future:
    """A future of function(*arguments); without processes it is done already."""
    if self._pool is not None:
      return self._pool.submit(function, *arguments)
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(function(*arguments))
    return future

  def map(self, function, *columns) -> list:
    """[function(*row) for each row of the columns], in order."""
    return [future.result() for future in [self.submit(function, *row) for row in zip(*columns, strict=True)]]

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._pool is not None:
      self._pool.shutdown(wait=True, cancel_futures=True)


def prepare(*unused) -> None:
  """In a process that works for another one: leaves Ctrl-C to that one, and ends with it, also where it is killed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


def spare_cores() -> int:
  """How many processes suit this machine beside the one that asks: all cores that it may use but one, 32 at most."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(32, cores - 1)
