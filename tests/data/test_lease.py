"""Two processes on one folder: the second is refused while the first lives, and takes over when it does not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from retree_jax.data import lease

_HOLDER = """
import sys, time
from retree_jax.data import lease
with lease.hold(sys.argv[1], "training"):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds `tmp_path / "run"`."""
  with subprocess.Popen([sys.executable, "-c", _HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()


def test_a_second_process_is_refused_and_the_first_keeps_its_lease(holder, tmp_path):
  sentence = rf"run is in use: process {holder.pid} on .* has been training there since .*; wait"
  with pytest.raises(ValueError, match=sentence), lease.hold(tmp_path / "run", "training"):
    pytest.fail("two processes hold one folder")
  assert json.loads((tmp_path / "run" / lease.NAME).read_text())["pid"] == holder.pid


def test_the_lease_of_a_killed_process_is_taken_over_at_once(holder, tmp_path):
  os.kill(holder.pid, signal.SIGKILL)
  holder.wait()
  began = time.monotonic()
  with lease.hold(tmp_path / "run", "training"):
    assert json.loads((tmp_path / "run" / lease.NAME).read_text())["pid"] == os.getpid()
  assert time.monotonic() - began < 5
  assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_later_process_with_the_same_id_is_not_the_holder(tmp_path):
  facts = {**lease._machine(), "pid": os.getpid(), "started": "1", "what": "training", "token": "x", "beats": 3}
  (tmp_path / lease.NAME).write_text(json.dumps(facts))
  if not lease._started(os.getpid()):
    pytest.skip("this system does not tell when a process started")
  with lease.hold(tmp_path, "training"):
    pass
  assert not list(tmp_path.iterdir())


def test_one_process_holds_a_folder_once(tmp_path):
  with lease.hold(tmp_path, "training"), pytest.raises(ValueError, match="in use"), lease.hold(tmp_path, "training"):
    pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "elsewhere", "pid": 7, "beats": 2, "token": "x"}'])
def test_a_silent_lease_of_another_machine_is_taken_over_after_watching_it(tmp_path, monkeypatch, capsys, text):
  monkeypatch.setattr(lease, "SILENCE", 0.3)
  (tmp_path / lease.NAME).write_text(text)
  with lease.hold(tmp_path, "training"):
    assert json.loads((tmp_path / lease.NAME).read_text())["pid"] == os.getpid()
  assert "whether it still runs" in capsys.readouterr().err


def test_a_lease_of_another_machine_that_beats_is_respected(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, "SILENCE", 5.0)
  end = threading.Event()

  def beat():
    for beats in range(1000):
      facts = {"host": "elsewhere", "pid": 7, "what": "training", "since": "noon", "beats": beats, "token": "x"}
      lease.writing.write_text(tmp_path / lease.NAME, json.dumps(facts))
      if end.wait(0.1):
        return

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    time.sleep(0.2)
    sentence = "process 7 on elsewhere has been training there since noon"
    with pytest.raises(ValueError, match=sentence), lease.hold(tmp_path, "training"):
      pass
  finally:
    end.set()
    thread.join()


def test_the_holder_beats_and_notices_that_it_was_taken_over(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, "BEAT", 0.05)
  path = tmp_path / lease.NAME
  with lease.hold(tmp_path, "training") as held:
    _wait_for(lambda: json.loads(path.read_text())["beats"] > 2)
    held.check()
    lease.writing.write_text(path, json.dumps({"token": "another", "host": "elsewhere"}))
    with pytest.raises(lease.LostError, match="taken over"):
      _wait_for(held.check)
  assert json.loads(path.read_text())["token"] == "another"


def test_neither_threads_nor_files_stay_behind(tmp_path):
  before = threading.active_count()
  with pytest.raises(RuntimeError), lease.hold(tmp_path / "a/b", "training"):
    raise RuntimeError
  assert threading.active_count() == before
  assert not (tmp_path / "a/b").exists()


def test_of_many_that_start_together_one_holds(tmp_path):
  won, refused, start = [], [], threading.Barrier(8)

  def run():
    start.wait()
    try:
      with lease.hold(tmp_path, "training"):
        won.append(1)
        while len(won) + len(refused) < 8:
          time.sleep(0.01)
    except ValueError:
      refused.append(1)

  (tmp_path / lease.NAME).write_text(json.dumps({**lease._machine(), "pid": 2**22 + 1, "started": "1", "token": "x"}))
  threads = [threading.Thread(target=run) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(won), len(refused)) == (1, 7)


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
  def link(*_):
    raise PermissionError("no hard links here")

  monkeypatch.setattr(os, "link", link)
  with lease.hold(tmp_path, "training"), pytest.raises(ValueError, match="in use"), lease.hold(tmp_path, "training"):
    pass
  assert not list(tmp_path.iterdir())


def test_the_last_of_two_writers_holds_a_bucket(tmp_path, monkeypatch):
  """A bucket has no atomic creation: an upload that came later than ours wins."""
  path = tmp_path / lease.NAME

  class Object(type(epath.Path(path))):
    def __str__(self):
      return "gs://bucket/.lease"

  monkeypatch.setattr(lease, "_SETTLE", 0.0)
  assert lease._create(Object(path), "first")
  assert not lease._create(Object(path), "second")
  path.unlink()
  monkeypatch.setattr(lease.time, "sleep", lambda _: path.write_text("another"))
  assert not lease._create(Object(path), "first")


def test_a_file_is_refused(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(ValueError, match="run is a file"), lease.hold(tmp_path / "run", "training"):
    pass


def _wait_for(condition, seconds=10):
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return
    time.sleep(0.02)
  pytest.fail("it did not happen")
