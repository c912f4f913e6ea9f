"""The queue: one job after the other, each with its own result; full, cancelled, abandoned and failed ones."""

import contextlib
import logging
import threading

import pytest

from retree_jax.page import jobs
from tests import small


@pytest.fixture
def queue():
  with contextlib.closing(jobs.Queue()) as made:
    yield made


def outcome(name, size=1):
  return lambda say: jobs.Outcome({"name": name}, {f"{name}.txt": b"x" * size})


def ended(queue, name):
  small.wait_for(lambda: queue.status(name)["state"] in ("done", "failed"), 20)
  return queue.status(name)


class Held:
  """Work that waits for a sign, and then says how far it is."""

  def __init__(self):
    self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()

  def __call__(self, say):
    say("at work", 0.25)
    self.begun.set()
    try:
      assert self.go.wait(20)
      say("nearly", 0.9)
      return jobs.Outcome({}, {})
    finally:
      self.ended.set()


def test_jobs_run_one_at_a_time_in_order_and_say_how_far_they_are(queue):
  held = Held()
  first, second, third = queue.add(held), queue.add(outcome("b")), queue.add(outcome("c"))
  assert held.begun.wait(20)
  told = queue.status(first)
  assert (told["state"], told["text"], told["share"]) == ("running", "at work", 0.25)
  assert queue.status(second)["text"] == "waiting for 1 other job"
  assert queue.status(third)["text"] == "waiting for 2 other jobs"
  held.go.set()
  assert ended(queue, third)["result"] == {"name": "c"}
  assert ended(queue, second)["result"] == {"name": "b"}
  assert queue.file(second, "b.txt") == b"x" and queue.file(second, "c.txt") is None
  assert queue.file("other", "b.txt") is None and queue.status("other") is None


def test_no_name_can_be_guessed(queue):
  names = {queue.add(outcome("a")) for _ in range(5)}
  assert len(names) == 5 and all(len(name) >= 20 for name in names)


def test_bad_input_is_told_and_other_failures_are_logged(queue, caplog):
  def refuse(say):
    raise ValueError("too dark: choose another")

  def fail(say):
    raise RuntimeError("secret details")

  assert ended(queue, queue.add(refuse))["text"] == "too dark: choose another"
  with caplog.at_level(logging.ERROR):
    told = ended(queue, queue.add(fail))
  assert told["state"] == "failed" and "RuntimeError" in told["text"] and "secret" not in told["text"]
  assert "secret details" in caplog.text
  assert ended(queue, queue.add(outcome("a")))["state"] == "done"


def test_a_full_queue_refuses(queue, monkeypatch):
  monkeypatch.setattr(jobs, "MAX_WAITING", 2)
  held = Held()
  queue.add(held)
  assert held.begun.wait(20)
  last = [queue.add(outcome("a")) for _ in range(2)][-1]
  with pytest.raises(jobs.Full, match="2 jobs are waiting"):
    queue.add(outcome("a"))
  queue.cancel(last)
  queue.add(outcome("a"))
  held.go.set()


def test_a_cancelled_job_stops_at_its_next_step_and_the_next_one_runs(queue):
  held = Held()
  name = queue.add(held)
  assert held.begun.wait(20)
  queue.cancel(name)
  assert queue.status(name) is None
  held.go.set()
  assert ended(queue, queue.add(outcome("a")))["state"] == "done"
  assert held.ended.is_set()


def test_a_job_that_no_browser_asks_for_is_dropped(queue, monkeypatch):
  held = Held()
  queue.add(held)
  assert held.begun.wait(20)
  waiting = queue.add(outcome("a"))
  monkeypatch.setattr(jobs, "UNWATCHED", -1.0)
  held.go.set()
  assert held.ended.wait(20)
  small.wait_for(lambda: queue.status(waiting) is None, 20)


def test_the_oldest_results_are_forgotten_first_and_the_newest_stays(queue, monkeypatch):
  monkeypatch.setattr(jobs, "MAX_KEPT_BYTES", 100)
  names = []
  for size in (40, 50, 60, 500):
    names.append(queue.add(outcome("a", size)))
    assert ended(queue, names[-1])["state"] == "done"
    small.wait_for(lambda: sum(queue.file(name, "a.txt") is not None for name in names) <= 2, 20)
  small.wait_for(lambda: [queue.status(name) is None for name in names] == [True, True, True, False], 20)


def test_results_that_nobody_asks_for_are_forgotten(monkeypatch):
  monkeypatch.setattr(jobs, "_LOOK", 0.05)
  with contextlib.closing(jobs.Queue()) as queue:
    name = queue.add(outcome("a"))
    assert ended(queue, name)["state"] == "done"
    monkeypatch.setattr(jobs, "KEPT", 0.2)
    small.wait_for(lambda: name not in queue._jobs, 20)
