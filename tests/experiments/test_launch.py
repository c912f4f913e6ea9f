"""Launch scripts: they parse, their dry run prints the commands they would run, and starts none."""

import os
import re
import shlex
import subprocess

import pytest

from tests import small

LAUNCH = small.ROOT / "experiments" / "launch"
# Nothing but the shell's own tools: a script that starts anything else in a dry run fails.
PATH = "/usr/bin:/bin"
TPU = {"NAME": "retree", "ZONE": "us-east5-b", "BUCKET": "gs://b"}


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["bash", str(LAUNCH / script), *arguments],
    env={"PATH": PATH, "HOME": os.devnull, **environment},
    text=True,
    capture_output=True,
    cwd=small.ROOT,
    check=False,
  )


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sbatch"])
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)


def test_tpu_dry_run_prints_the_whole_sequence():
  done = run("tpu_vm.sh", "--config", "configs/tree.py", "--config.data.source=folder:/my eyes", DRY_RUN="1", **TPU)
  assert done.returncode == 0, done.stderr
  commands = [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]
  assert all(line.startswith("+ ") for line in done.stdout.splitlines())
  assert [" ".join(c[:5]) for c in commands if c[0] == "gcloud"] == [
    f"gcloud compute tpus tpu-vm {verb}" for verb in ("create", "scp", "ssh", "ssh")
  ]
  assert "--spot" in commands[0] and "--accelerator-type=v6e-8" in commands[0]
  assert all("--worker=all" in c for c in commands if c[4:5] in (["ssh"], ["scp"]))
  # What the hosts run is the training command, with the arguments as they were given.
  remote = shlex.split(commands[-1][-1].removeprefix("--command=").split("&&")[-1])
  assert remote == [
    ".venv/bin/python",
    "-m",
    "retree_jax.main",
    "--distributed=on",
    "--workdir=gs://b/retree",
    "--config",
    "configs/tree.py",
    "--config.data.source=folder:/my eyes",
  ]
  deleted = run("tpu_vm.sh", DRY_RUN="1", ACTION="delete", **TPU)
  assert deleted.stdout.split()[:6] == ["+", "gcloud", "compute", "tpus", "tpu-vm", "delete"]


def test_slurm_dry_run_prints_the_command():
  done = run("slurm.sbatch", "--config", "configs/tree.py", DRY_RUN="1", WORKDIR="/shared/runs/my tree")
  assert done.returncode == 0, done.stderr
  (line,) = done.stdout.splitlines()
  assert shlex.split(line) == [
    "+",
    "srun",
    "--kill-on-bad-exit=1",
    ".venv/bin/python",
    "-m",
    "retree_jax.main",
    "--distributed=auto",
    "--workdir=/shared/runs/my tree",
    "--config",
    "configs/tree.py",
  ]


@pytest.mark.parametrize("code, requeued", [(143, True), (0, False), (2, False), (1, False)])
def test_slurm_requeues_what_sigterm_stopped_and_nothing_else(tmp_path, code, requeued):
  """With a stand-in for Slurm: the job goes back into the queue after a signal, not when finished, not when failed."""
  called = tmp_path / "called"
  (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
  (tmp_path / "srun").write_text(f'#!/bin/sh\necho "step 9: loss 1" >&2\nexit {code}\n')
  for tool in ("srun", "scontrol"):
    (tmp_path / tool).chmod(0o755)
  done = run("slurm.sbatch", "--config", "c", WORKDIR="/w", SLURM_JOB_ID="42", PATH=f"{tmp_path}:{PATH}")
  assert done.returncode == code and "step 9" in done.stderr
  assert called.exists() == requeued and (not requeued or called.read_text() == "requeue 42\n")


@pytest.mark.parametrize(
  "script, environment, words",
  [
    ("tpu_vm.sh", {}, "NAME"),
    ("tpu_vm.sh", {**TPU, "BUCKET": "runs"}, "BUCKET=runs is no bucket: write BUCKET=gs://NAME"),
    ("tpu_vm.sh", TPU, "what to train is missing"),
    ("slurm.sbatch", {}, "WORKDIR: is missing"),
    ("slurm.sbatch", {"WORKDIR": "/w"}, "what to train is missing"),
  ],
)
def test_what_is_missing_is_said(script, environment, words):
  done = run(script, **environment)
  assert done.returncode != 0 and words in done.stderr and not done.stdout


def test_kubernetes_job_is_whole():
  yaml = pytest.importorskip("yaml")
  text = (LAUNCH / "gke_job.yaml").read_text()
  job = yaml.safe_load(text)
  assert job["kind"] == "JobSet" and job["spec"]["failurePolicy"]["maxRestarts"] > 0
  # A run that SIGTERM stopped restarts, however often: its exit code fails the job, and that failure is not counted.
  (rule,) = job["spec"]["failurePolicy"]["rules"]
  assert rule == {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
  (exits,) = job["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
  assert exits["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [143]}
  pods = job["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = pods["template"]["spec"]["containers"]
  # Hosts times chips a host are the chips of the topology.
  x, y = pods["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert pods["parallelism"] == pods["completions"]
  assert pods["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == int(x) * int(y)
  assert container["command"] == ["python", "-m", "retree_jax.main"] and "--distributed=on" in container["args"]
  mount = container["volumeMounts"][0]
  assert f"--workdir={mount['mountPath']}/tree" in container["args"]
  assert pods["template"]["spec"]["volumes"][0]["name"] == mount["name"]
  for word in ("IMAGE", "BUCKET", "QUEUE"):  # what the comment says to fill in
    assert f"s|{word}|" in text and word in str(job)


def test_commands_use_flags_that_exist():
  known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (small.ROOT / "retree_jax" / "main.py").read_text()))
  text = "".join((LAUNCH / name).read_text() for name in ("tpu_vm.sh", "slurm.sbatch", "gke_job.yaml"))
  used = {
    word.split("=")[0].removeprefix("--")
    for line in text.splitlines()
    if "retree_jax.main" in line
    for word in line.split("retree_jax.main", 1)[1].split()
    if word.startswith("--")
  }
  used = {name for name in used if not name.startswith("config.")}
  assert {"distributed", "workdir"} <= used and used <= known
