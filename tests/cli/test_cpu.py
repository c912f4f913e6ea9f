"""Settings for CPUs: given where they help, never over the user's own, once per process."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from retree_jax.cli import cpu


@pytest.fixture
def plain_host(monkeypatch):
  """Linux with glibc, jaxlib 0.10 and no accelerator."""
  monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.39"))
  monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
  monkeypatch.setattr(pathlib.Path, "exists", lambda self: False)


def test_a_plain_host_gets_all_settings(plain_host):
  found = cpu.settings({})
  assert found.pop("XLA_FLAGS") == "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
  assert found == {
    "RETREE_JAX_CPU_SETTINGS": "on",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
  }
  assert cpu.settings({"JAX_PLATFORMS": "cpu"}) == cpu.settings({})


def test_what_the_user_set_stays(plain_host):
  found = cpu.settings({"MALLOC_TOP_PAD_": "4096", "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"})
  assert "MALLOC_TOP_PAD_" not in found
  assert found["XLA_FLAGS"].split() == [
    "--xla_cpu_enable_fast_math=false",
    "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",
  ]
  assert "XLA_FLAGS" not in cpu.settings({"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=individual_dot"})


def test_no_settings_for_accelerators_or_another_libc(plain_host, monkeypatch):
  assert cpu.settings({"JAX_PLATFORMS": "cuda"}) == cpu.settings({"JAX_PLATFORMS": "tpu,cpu"}) == {}
  monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
  assert cpu.settings({}) == {}
  monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.39"))
  monkeypatch.setattr(pathlib.Path, "exists", lambda self: str(self) == "/dev/nvidia0")
  assert cpu.settings({}) == {}
  assert cpu.settings({"JAX_PLATFORMS": "cpu"})  # the CPU is wanted although there is a GPU


@pytest.mark.parametrize("version", ["0.11.0", "0.12.0.1", "0.9.2"])
def test_a_flag_that_xla_may_not_know_is_not_given(plain_host, monkeypatch, version):
  monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
  assert "XLA_FLAGS" not in cpu.settings({}) and "GLIBC_TUNABLES" in cpu.settings({})


@pytest.fixture
def calls(plain_host, monkeypatch):
  """What `restart_with_settings` would replace an unmarked process by, on a plain host."""
  made = []
  monkeypatch.setattr(os, "execve", lambda *call: made.append(call))
  monkeypatch.setattr("sys.platform", "linux")
  monkeypatch.setattr("sys.executable", "/usr/bin/python3")
  monkeypatch.setattr("sys.gettrace", lambda: None)
  monkeypatch.setattr("sys.orig_argv", ["python", "-m", "retree_jax.main", "--config", "configs/tree.py:tiny"])
  for name in cpu.settings({}):
    monkeypatch.delenv(name, raising=False)
  return made


def test_the_process_is_replaced_once(calls, monkeypatch):
  cpu.restart_with_settings()
  ((program, arguments, environment),) = calls
  assert program == "/usr/bin/python3"
  assert arguments[1:] == ["-m", "retree_jax.main", "--config", "configs/tree.py:tiny"]
  assert cpu.settings({}).items() <= environment.items() and environment["PATH"] == os.environ["PATH"]
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  cpu.restart_with_settings()
  for name in cpu.settings({}):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("RETREE_JAX_CPU_SETTINGS", "off")
  cpu.restart_with_settings()
  assert len(calls) == 1


@pytest.mark.parametrize(
  "command",
  [
    "-X dev -W error -O -m retree_jax.generate --num 3",
    "-m cProfile -o profile -m retree_jax.generate --num 3",
    "/venv/bin/retree-jax generate --num 3",
  ],
)
def test_interpreter_options_and_the_profiler_stay(calls, monkeypatch, command):
  monkeypatch.setattr("sys.orig_argv", ["python", *command.split()])
  cpu.restart_with_settings()
  assert calls[0][1] == ["/usr/bin/python3", *command.split()]


def test_a_process_in_a_debugger_or_tracer_is_left_as_it_is(calls, monkeypatch):
  with monkeypatch.context() as m:
    m.setattr("sys.orig_argv", ["python", "-m", "pdb", "-m", "retree_jax.generate"])
    cpu.restart_with_settings()
  with monkeypatch.context() as m:
    m.setattr("sys.gettrace", lambda: print)
    cpu.restart_with_settings()
  assert not calls
  cpu.restart_with_settings()
  assert len(calls) == 1


def test_a_real_restart_repeats_the_command_to_the_letter(tmp_path):
  """With the profiler, warnings as errors and optimisation on: one process restarts, and its replacement has all three."""
  (tmp_path / "shown.py").write_text(
    "import os, sys\n"
    "from retree_jax.cli import cpu\n"
    "cpu.platform.libc_ver = lambda: ('glibc', '2.39')\n"
    "cpu.restart_with_settings()\n"
    "print(os.environ.get('RETREE_JAX_CPU_SETTINGS'), sys.flags.optimize, sys.warnoptions, sys._xoptions, sys.argv[1:])\n"
  )
  environment = {k: v for k, v in os.environ.items() if k != "RETREE_JAX_CPU_SETTINGS"}
  environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(cpu.__file__).parents[2])}
  flags = ["-X", "utf8", "-W", "error", "-O", "-m", "cProfile", "-o", "profile", "-m", "shown", "--out=a b"]
  run = subprocess.run([sys.executable, *flags], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
  assert run.stdout == "on 1 ['error'] {'utf8': True} ['--out=a b']\n"
  assert (tmp_path / "profile").stat().st_size


@pytest.mark.parametrize("mark", ["on", "off", None])
def test_only_a_process_with_the_settings_computes_on_the_calling_thread(monkeypatch, mark):
  import jax

  updates = []
  monkeypatch.setattr(jax.config, "update", lambda *option: updates.append(option))
  if mark is None:
    monkeypatch.delenv("RETREE_JAX_CPU_SETTINGS", raising=False)
  else:
    monkeypatch.setenv("RETREE_JAX_CPU_SETTINGS", mark)
  cpu.dispatch_inline()
  assert updates == ([("jax_cpu_enable_async_dispatch", False)] if mark == "on" else [])
