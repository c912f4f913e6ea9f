"""Meshes, shardings, and jobs of several processes.

One mesh with two axes serves every stage. `data` splits the batch; `fsdp` splits the batch and the parameters (ZeRO-3 as
sharding annotations: jit inserts the gathers). One device is a 1×1 mesh. Axes are of type Auto: the compiler propagates
shardings, and functions of arrays contain no collectives.
"""

import functools
import os
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH = PartitionSpec(("data", "fsdp"))
REPLICATED = PartitionSpec()


def initialize_distributed(
  mode: str = "auto", coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins the processes of one job. Must run before any JAX device is used; does nothing on a single host.

  Args:
    mode: "auto" joins on a Cloud TPU pod, under Slurm with several tasks, or when a coordinator is named; "on" always joins;
      "off" never.
    coordinator: "host:port" of process 0, for clusters that JAX does not recognise.
    num_processes: with `coordinator`, the number of processes.
    process_id: with `coordinator`, this process's rank in [0, num_processes).

  Raises:
    ValueError: unknown mode, or a coordinator without number and rank of the processes.
  """
  if mode not in ("auto", "on", "off"):
    raise ValueError(f"--distributed={mode} is unknown: use auto, on or off")
  if coordinator is not None and (num_processes is None or process_id is None):
    raise ValueError("--coordinator needs --num_processes and --process_id: add both")
  if mode == "off":
    return
  if coordinator is not None:
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
  slurm_tasks = int(os.environ.get("SLURM_NTASKS", "1") or 1) if "SLURM_PROCID" in os.environ else 1
  if mode == "on" or "," in workers or slurm_tasks > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
    jax.distributed.initialize(local_device_ids=_slurm_devices(os.environ))


def _slurm_devices(environment) -> list[int] | None:
  """Which of the GPUs that it sees a process takes under Slurm: all of its node's, or its share where a node runs several
  processes. JAX would take one, that of the process's number on the node.

  Args:
    environment: as `os.environ`.

  Returns:
    Numbers into the visible GPUs; None where there is nothing to say: no Slurm, no GPU, or the user's own JAX_LOCAL_DEVICE_IDS.

  Raises:
    ValueError: the processes of a node cannot share its GPUs evenly.
  """
  visible = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES") or ""
  on_node = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
  count = 0 if visible == "NoDevFiles" else len(visible.split(",")) if visible else on_node
  if "SLURM_PROCID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment or not count:
    return None
  if count < on_node:  # Slurm has given every process some of its own
    return list(range(count))
  # "2(x3),1": two processes on each of three nodes, one on the fourth.
  tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
  per_node = [int(n) for n, times in tasks for _ in range(int(times or 1))]
  here = per_node[int(environment.get("SLURM_NODEID", 0)) % len(per_node)]
  if count % here:
    raise ValueError(
      f"{here} processes cannot share {count} GPUs of a node evenly: set --ntasks-per-node=1, or a divisor of {count}"
    )
  share = count // here
  first = int(environment.get("SLURM_LOCALID", 0)) * share
  return list(range(first, first + share))


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
  """Mesh ("data", "fsdp") over all devices of all hosts.

  Args:
    fsdp: number of devices that share one copy of the parameters; -1 shares it among all.
    devices: list of devices; all of them by default.

  Raises:
    ValueError: `fsdp` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  fsdp = len(devices) if fsdp == -1 else fsdp
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(
      f"config.mesh.fsdp={fsdp} does not divide the {len(devices)} devices: use a divisor of {len(devices)}, or -1 for all"
    )
  grid = np.asarray(devices).reshape(len(devices) // fsdp, fsdp)
  return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis split over every device."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  """A full copy on every device."""
  return NamedSharding(mesh, REPLICATED)


def replicate(tree, mesh: Mesh):
  """Arrays that every process holds, as arrays with a copy on every device of the mesh.

  Args:
    tree: pytree of NumPy arrays, or of `jax.Array`s; those that no process can read as a whole must lie on this mesh.
    mesh: of this process's devices or of all processes'.
  """
  where = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, where)

  def put(x):
    if getattr(x, "sharding", None) == where:
      return x
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
      return _gather(where)(x)
    host = np.asarray(x)  # `jax.device_put` would send what lies on a device to the other hosts, which few backends can
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

  return jax.tree.map(put, tree)


@functools.lru_cache
def _gather(where: NamedSharding):
  return jax.jit(lambda x: x, out_shardings=where)


def infer_shardings(abstract_tree, mesh: Mesh, min_size: int = 2**16):
  """Shardings of a state: every large array split along its largest axis that `fsdp` divides, the rest replicated.

  Args:
    abstract_tree: pytree of arrays or `jax.ShapeDtypeStruct`.
    mesh: mesh with an axis "fsdp".
    min_size: arrays with fewer elements are replicated, since a gather costs more than their memory.

  Returns:
    pytree of `NamedSharding` of the same structure.
  """
  parts = mesh.shape["fsdp"]

  def leaf(x):
    if parts == 1 or x.size < min_size or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return replicated(mesh)
    axes = [axis for axis in np.argsort(x.shape)[::-1] if x.shape[axis] % parts == 0]
    if not axes:
      return replicated(mesh)
    spec = [None] * x.ndim
    spec[axes[0]] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(leaf, abstract_tree)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Raises ValueError unless `batch_size` splits evenly over the devices and the accumulation steps."""
  devices = mesh.size
  if batch_size % (devices * accumulate):
    good = max(1, round(batch_size / (devices * accumulate))) * devices * accumulate
    raise ValueError(
      f"config.train.batch_size={batch_size} is not divisible by {devices} devices × {accumulate} accumulation steps: "
      f"use for example --config.train.batch_size={good}"
    )


def to_global(batch, mesh: Mesh):
  """This host's rows of a batch (pytree of numpy arrays [b, ...]) as global arrays [b × hosts, ...] split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(x)), batch)


def to_host(tree):
  """Global arrays as whole numpy arrays on every host. All hosts must call it, unless the arrays live on this host alone."""
  if all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(tree)):
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


def on_first_process(function):
  """Calls `function` on process 0 alone. Its error is raised on all processes, so that none waits for one that has ended.

  Args:
    function: takes nothing.

  Returns:
    What it returns on process 0, None on the others.

  Raises:
    ValueError: on every process, with the message of the ValueError or OSError that `function` raised.
  """
  if jax.process_count() == 1:
    return function()
  from jax.experimental import multihost_utils

  result, sentence = None, ""
  if jax.process_index() == 0:
    try:
      result = function()
    except (ValueError, OSError) as error:
      sentence = str(error) or type(error).__name__
  text = np.zeros(4096, np.uint8)
  data = np.frombuffer(sentence.encode()[: text.size], np.uint8)
  text[: data.size] = data
  if sentence := bytes(multihost_utils.broadcast_one_to_all(text)).rstrip(b"\0").decode(errors="ignore"):
    raise ValueError(sentence)
  return result


def wait_for_all(name: str) -> None:
  """Waits until all processes have called it; does nothing in a job of one process."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"retree_jax {name}")
