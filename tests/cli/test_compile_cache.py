"""The compilation cache: where it lies, who may turn it off, and that a second process reads what the first one compiled."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from retree_jax.cli import compile_cache
from tests import small


@pytest.fixture
def environment(monkeypatch, tmp_path):
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  yield tmp_path
  os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # what `use` has set


def test_the_folder_is_the_users_and_this_machines(environment, monkeypatch):
  compile_cache.use()
  named = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  assert named == compile_cache.folder() and named.is_dir() and named.parent == environment / "retree_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(environment / "home"))
  assert compile_cache.folder().parent == environment / "home" / ".cache" / "retree_jax"
  here = compile_cache.folder().name
  monkeypatch.setattr("platform.machine", lambda: "another")
  assert compile_cache.folder().name != here  # code for one CPU may not run on another


@pytest.mark.parametrize("name, value", [("JAX_COMPILATION_CACHE_DIR", "/mine"), ("JAX_ENABLE_COMPILATION_CACHE", "False")])
def test_jax_variables_come_first(environment, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  compile_cache.use()
  assert os.environ.get("JAX_COMPILATION_CACHE_DIR") == (value if name.endswith("DIR") else None)
  assert not list(environment.iterdir())


def test_a_flag_of_every_command_turns_it_off(environment, monkeypatch):
  for command in (["retree-jax", "info", "--nocompile_cache", "--json"], ["main.py", "--nocompile_cache"]):
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    monkeypatch.setattr(sys, "argv", list(command))
    compile_cache.take_flag()
    assert compile_cache.FLAG not in sys.argv and len(sys.argv) == len(command) - 1
    compile_cache.use()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_folder_that_cannot_be_made_leaves_the_cache_off(environment, monkeypatch):
  (environment / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(environment / "file"))
  compile_cache.use()
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_programs_that_are_a_month_old_are_removed(environment):
  where = compile_cache.folder()
  where.mkdir(parents=True)
  for name, days in (("new", 1), ("old", 31)):
    (where / name).touch()
    os.utime(where / name, (time.time() - days * 86400,) * 2)
  compile_cache.use()
  assert [p.name for p in where.iterdir()] == ["new"]


COMMAND = """
from retree_jax.cli import errors

def command():
  import jax
  counts = dict(cache_hits=0, cache_misses=0)
  def heard(event, **unused):
    name = event.rpartition("/")[2]
    counts[name] = counts.get(name, 0) + 1
  jax.monitoring.register_event_listener(heard)
  jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3)).block_until_ready()
  print("read", counts["cache_hits"], "compiled", counts["cache_misses"])

raise SystemExit(errors.run(command))
"""


def test_a_command_reads_what_an_earlier_one_compiled(tmp_path):
  """Through `errors.run`, which every command goes through."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

  def counts(**more):
    done = subprocess.run(
      [sys.executable, "-c", COMMAND], env=environment | more, cwd=small.ROOT, text=True, capture_output=True, check=True
    )
    return [int(word) for word in done.stdout.split() if word.isdigit()]

  hits, misses = counts()
  assert hits == 0 < misses
  assert counts() == [misses, 0]
  assert counts(JAX_ENABLE_COMPILATION_CACHE="0")[0] == 0


@pytest.mark.parametrize("module", ["retree_jax.main", "retree_jax.generate", "retree_jax.evaluate", "retree_jax.cli.segment"])
def test_commands_import_jax_after_the_folder_is_named(module):
  subprocess.run([sys.executable, "-c", f"import sys, {module}; sys.exit('jax' in sys.modules)"], cwd=small.ROOT, check=True)
