"""Settings that speed up training on CPUs. Most of them must be in the environment before the process starts.

XLA's newer convolution path is slow for training in JAX 0.10; a flag turns it off. glibc returns large buffers to the kernel
after every step, only to fault them in again. Its variables keep them, but only in the main thread's heap: the heap of another
thread holds 64 MB at most, and larger buffers come from the kernel. The scratch memory of a step is larger, so JAX is told to
compute on the thread that calls it. A heap for every thread serves a step's thousands of small buffers: with one heap for all,
searching its lists took up to an eighth of the time. Measured in `experiments/benchmarks/RESULTS.md`.
"""

import importlib.metadata
import os
import pathlib
import platform
import sys

_MARK = "RETREE_JAX_CPU_SETTINGS"
_MALLOC = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": str(2**34),
  "MALLOC_TOP_PAD_": str(2**28),
}
_CONVOLUTION = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def settings(environment=None) -> dict[str, str]:
  """The variables to add to an environment; {} where an accelerator is expected, and on systems other than Linux with glibc.

  Variables that the user has set are left alone. XLA refuses unknown flags, so the flag is given only to jaxlib releases that
  have it. One variable marks the process, for `dispatch_inline`.
  """
  environment = os.environ if environment is None else environment
  platforms = environment.get("JAX_PLATFORMS", "")
  devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
  accelerator = any(pathlib.Path(p).exists() for p in devices)
  if platforms not in ("", "cpu") or (platforms == "" and accelerator) or platform.libc_ver()[0] != "glibc":
    return {}
  added = {_MARK: "on", **{k: v for k, v in _MALLOC.items() if k not in environment}}
  flags = environment.get("XLA_FLAGS", "")
  version = tuple(int(p) for p in importlib.metadata.version("jaxlib").split(".")[:2])
  if "ynn_fusion_type" not in flags and version == (0, 10):
    added["XLA_FLAGS"] = f"{flags} {_CONVOLUTION}".strip()
  return added


def restart_with_settings() -> None:
  """Replaces this process, once, by the same command with the settings in its environment. Call it before JAX is imported.

  The command is repeated to the letter: interpreter options (`-X`, `-W`, `-O`) and `-m cProfile` stay. A process in a debugger
  or under a tracer (pdb, coverage) is left as it is, because the replacement would lose breakpoints and connection; so is every
  process with RETREE_JAX_CPU_SETTINGS=off.
  """
  if os.environ.get(_MARK) or sys.platform != "linux" or _is_traced() or not sys.orig_argv[1:]:
    return
  if added := settings():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **added})


def _is_traced() -> bool:
  """Whether a debugger or tracer watches this process."""
  monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
  debugger = monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
  return sys.gettrace() is not None or debugger or bool({"pdb", "ipdb"} & set(sys.orig_argv))


def dispatch_inline() -> None:
  """In a process that has the settings, lets JAX compute on the thread that calls it instead of on one of its own.

  Must be called before JAX touches a device. Results are the same.
  """
  if os.environ.get(_MARK) == "on":
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
