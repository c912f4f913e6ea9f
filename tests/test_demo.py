"""`retree-jax demo`: starts, answers and stops; what it lacks is told in one sentence."""

import importlib.util
import re
import signal
import socket
import urllib.request

import pytest

from retree_jax import demo
from tests import small, stages
from tests.cli.test_command import run


def test_the_command_serves_until_it_is_interrupted(tmp_path):
  pytest.importorskip("uvicorn", reason="needs the extra `demo`")
  made = stages.chain(tmp_path)
  process = small.start(
    "-m", "retree_jax", "demo", "--port=0", f"--tree={made['tree']}", f"--fundus={made['fundus']}", "--segmenter=none"
  )
  try:
    line = process.stdout.readline()
    url = re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+/) \(Ctrl-C stops it\)\n", line)
    assert url, line
    with urllib.request.urlopen(url[1], timeout=60) as answer:
      page = answer.read().decode()
    assert 'data-action="paint"' in page and 'data-action="segment"' not in page
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "error: stopped by the keyboard; rerun the same command to go on\n"
  finally:
    small.stop(process)


def test_a_port_in_use_is_told(monkeypatch, capsys):
  pytest.importorskip("uvicorn", reason="needs the extra `demo`")
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    assert run(monkeypatch, "demo", f"--port={port}") == 2
  said = capsys.readouterr().err
  assert said.startswith(f"error: port {port} is in use: stop what uses it, or name another, e.g. --port=")
  assert said.count("\n") == 1


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--host=203.0.113.1"], "--host=203.0.113.1 is no address of this computer: use 127.0.0.1"),
    (["--port=0", "--tree=nowhere"], "nowhere"),
  ],
)
def test_bad_flags_are_told(arguments, words, monkeypatch, capsys):
  pytest.importorskip("uvicorn", reason="needs the extra `demo`")
  assert run(monkeypatch, "demo", *arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_missing_extra_is_told_with_the_command_that_installs_it(monkeypatch, capsys):
  real = importlib.util.find_spec
  monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name in demo._NEEDED else real(name))
  assert run(monkeypatch, "demo") == 2
  said = capsys.readouterr().err
  assert said == "error: the page needs starlette and uvicorn: pip install starlette uvicorn (the extra `demo` of retree-jax)\n"
