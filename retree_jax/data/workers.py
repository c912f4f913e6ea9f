"""Other processes for work on single trees that Python would otherwise do one after the other."""

import concurrent.futures
import multiprocessing
import os
import signal


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
      self._pool = concurrent.futures.ProcessPoolExecutor(
        count,
        multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is for the process that they work for
      )

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


def spare_cores() -> int:
  """How many processes suit this machine beside the one that asks: all cores that it may use but one."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return cores - 1
