"""The queue of the page: one job runs at a time, the others wait, and finished ones are kept for a while.

A job is known by a random name that only the browser gets which asked for it, so users see their own pictures alone.
"""

import collections
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable

MAX_WAITING = 16
MAX_KEPT_BYTES = 256 * 2**20  # of the files of finished jobs; the oldest go first
MAX_KEPT = 64
UNWATCHED = 150.0  # seconds after which an open job is dropped that no browser asks for; hidden tabs ask once a minute
KEPT = 3600.0  # seconds for which a finished job is kept after a browser has asked for it
_LOOK = 60.0  # seconds between two looks for results to forget
_OPEN = ("waiting", "running")


class Full(RuntimeError):
  """Too many jobs wait already."""


class Cancelled(Exception):
  """Raised in the work of a job that nobody wants any more."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a job makes.

  Attributes:
    result: what the browser is told, as JSON can hold it.
    files: {name: content} that the browser may fetch, and no others.
  """

  result: dict
  files: dict[str, bytes]


Work = Callable[[Callable[[str, float], None]], Outcome]


class _Job:
  def __init__(self, work: Work):
    self.name, self.work = secrets.token_urlsafe(16), work
    self.state, self.text, self.share = "waiting", "", 0.0
    self.asked = self.began = self.seen = time.monotonic()
    self.ended: float | None = None
    self.outcome = Outcome({}, {})

  def is_abandoned(self) -> bool:
    return time.monotonic() - self.seen > (UNWATCHED if self.state in _OPEN else KEPT)


class Queue:
  """Runs jobs one after the other on a thread of its own, which is where the devices work."""

  def __init__(self):
    self._jobs: dict[str, _Job] = {}
    self._waiting: collections.deque[_Job] = collections.deque()
    self._changed = threading.Condition()
    self._stopping = False
    self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
    self._thread.start()

  def add(self, work: Work) -> str:
    """Queues a job.

    Args:
      work: called with a function that takes a text and the share in [0, 1] that is done; returns the `Outcome`. A ValueError
        becomes what the user reads.

    Returns:
      The job's name.

    Raises:
      Full: `MAX_WAITING` jobs wait.
    """
    with self._changed:
      self._drop_abandoned()
      self._forget_old()
      if len(self._waiting) >= MAX_WAITING:
        raise Full(f"{MAX_WAITING} jobs are waiting already: try again in a minute")
      job = _Job(work)
      self._jobs[job.name] = job
      self._waiting.append(job)
      self._changed.notify()
    return job.name

  def status(self, name: str) -> dict | None:
    """How far a job is.

    Returns:
      {"state": "waiting", "running", "done" or "failed"; "text"; "share" that is done, in [0, 1]; "seconds" since it began;
      "result", of a job that is done}; None for a job that is unknown or forgotten.
    """
    with self._changed:
      job = self._jobs.get(name)
      if job is None:
        return None
      job.seen = time.monotonic()
      ahead = self._waiting.index(job) + 1 if job in self._waiting else 0
      text = job.text if job.state != "waiting" else f"waiting for {ahead} other job{'s' * (ahead > 1)}"
      seconds = 0.0 if job.state == "waiting" else (job.ended or time.monotonic()) - job.began
      told = {"state": job.state, "text": text, "share": job.share, "seconds": round(seconds, 1)}
      return told | ({"result": job.outcome.result} if job.state == "done" else {})

  def file(self, name: str, file: str) -> bytes | None:
    """A file of a finished job; None where there is none."""
    with self._changed:
      job = self._jobs.get(name)
      if job is None:
        return None
      job.seen = time.monotonic()
      return job.outcome.files.get(file)

  def cancel(self, name: str) -> None:
    """Drops a job: at once if it waits, at its next step if it runs."""
    with self._changed:
      job = self._jobs.pop(name, None)
      if job in self._waiting:
        self._waiting.remove(job)

  def close(self, seconds: float = 5.0) -> None:
    """Stops after the step that runs, and waits for it."""
    with self._changed:
      self._stopping = True
      self._waiting.clear()
      self._changed.notify()
    self._thread.join(seconds)

  def _drop_abandoned(self) -> None:
    for job in [job for job in self._waiting if job.is_abandoned()]:
      self._waiting.remove(job)
      del self._jobs[job.name]

  def _run(self) -> None:
    while True:
      with self._changed:
        while not (self._waiting or self._stopping):
          self._changed.wait(_LOOK)
          self._forget_old()
        if self._stopping:
          return
        self._drop_abandoned()
        if not self._waiting:
          continue
        job = self._waiting.popleft()
        job.state, job.began = "running", time.monotonic()
      self._work(job)
      with self._changed:
        self._forget_old()

  def _work(self, job: _Job) -> None:
    def say(text: str, share: float) -> None:
      with self._changed:
        if self._stopping or job.name not in self._jobs or job.is_abandoned():
          raise Cancelled
        job.text, job.share = text, float(share)

    state, text = "failed", ""
    try:
      job.outcome, state = job.work(say), "done"
    except Cancelled:
      text = "cancelled"
    except ValueError as error:
      text = str(error)
    except Exception as error:  # whatever the models raise must not end the thread
      logging.getLogger(__name__).exception("a job failed")
      text = f"the models failed ({type(error).__name__}): the terminal in which the server runs says more"
    with self._changed:
      job.state, job.text, job.share, job.ended, job.work = state, text, 1.0, time.monotonic(), None

  def _forget_old(self) -> None:
    finished = [job for job in self._jobs.values() if job.state not in _OPEN]
    sizes = {job.name: sum(map(len, job.outcome.files.values())) for job in finished}
    for job in finished:
      crowded = len(sizes) > 1 and (len(sizes) > MAX_KEPT or sum(sizes.values()) > MAX_KEPT_BYTES)
      if crowded or job.is_abandoned():
        del sizes[job.name], self._jobs[job.name]
