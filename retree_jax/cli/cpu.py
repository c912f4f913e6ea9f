"""Settings that make training on CPUs as quick as it can be; most must stand in the environment before the process starts.

XLA's newer convolution path is slow for training in JAX 0.10 (a flag turns it off), and glibc hands large buffers back to the
kernel after every step, only to fault them in again. The variables of glibc keep them, but only in the main thread's heap: one
of another thread holds 64 MB at most, and what is larger comes from the kernel. A step's scratch memory is larger, so JAX is
told to compute on the thread that calls it. Each thread keeps a heap for a step's thousands of small buffers: in one heap for
all, the search of its lists took up to an eighth of the time. Measured in `experiments/benchmarks/RESULTS.md`.
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
  """The variables to add to an environment: {} where an accelerator is expected, and on other systems than Linux with glibc.
  What the user set already is left alone. XLA refuses flags it does not know, so only jaxlib releases known to have it get the
  flag. One variable marks the process, for `dispatch_inline`.
  """
  environment = os.environ if environment is None else environment
  platforms = environment.get("JAX_PLATFORMS", "")
  devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
  accelerator = any(pathlib.Path(p).exists() for p in devices)
  if platforms not in ("", "cpu") or (platforms == "" and accelerator) or platform.libc_ver()[0] != "glibc":
    return {}
  found = {_MARK: "on", **{k: v for k, v in _MALLOC.items() if k not in environment}}
  flags = environment.get("XLA_FLAGS", "")
  version = tuple(int(p) for p in importlib.metadata.version("jaxlib").split(".")[:2])
  if "ynn_fusion_type" not in flags and version == (0, 10):
    found["XLA_FLAGS"] = f"{flags} {_CONVOLUTION}".strip()
  return found


def restart_with_settings(module: str) -> None:
  """Replaces this process by `python -m MODULE` with the same arguments and the settings, once; RETREE_JAX_CPU_SETTINGS=off
  leaves the process as it is. Must be called before JAX is imported."""
  if os.environ.get(_MARK) or sys.platform != "linux":
    return
  added = settings()
  if added:
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **added})


def dispatch_inline() -> None:
  """In a process that has the settings, lets JAX compute on the thread that calls it instead of one of its own. Must be called
  before JAX touches a device; results are the same."""
  if os.environ.get(_MARK) == "on":
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
