"""Launch scripts, run whole against stand-ins for gcloud, srun and kubectl, which note their calls and fail on demand."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import small

LAUNCH = small.ROOT / "experiments" / "launch"
SCRIPTS = ("tpu_vm.sh", "worker.sh", "gke.sh", "slurm.sbatch")
PATH = "/usr/bin:/bin"
TPU = {"NAME": "retree", "ZONE": "us-east5-b", "BUCKET": "gs://b", "POLL": "0.1"}
GKE = {"IMAGE": "registry/retree:1", "BUCKET": "gs://b"}
TRAIN = ("--config", "configs/tree.py", "--config.data.source=folder:/my eyes")

# A TPU VM of one host: its state is the file vm, its home the folder home; what a host is told to do happens here.
GCLOUD = """
verb=$4
echo "$*" >>calls
left=$(cat "fail_$verb" 2>/dev/null || echo 0)
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) >"fail_$verb"
  echo "ERROR: $verb failed on demand" >&2
  exit 1
fi
case $verb in
  describe) if [ -f vm ]; then cat vm; else echo "ERROR: (gcloud) NOT_FOUND: no such node" >&2; exit 1; fi ;;
  create) echo READY >vm; mkdir -p home ;;
  delete) rm -rf vm home ;;
  scp) cp "$5" "home/${6#*:}" ;;
  ssh) for word; do case $word in --command=*) cd home && HOME=$PWD bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
# Training: notes its arguments, goes on while there is a file hold, ends with the next code of the file codes, or 143 after
# SIGTERM.
PYTHON = """
case "$*" in
  -c*) exit "$(cat no_python 2>/dev/null || echo 0)" ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$HERE/python3.13" "$3/bin/python" ;;
  *retree_jax.main*)
    echo "$*" >>trained
    trap 'exit 143' TERM
    while [ -f hold ]; do sleep 0.05; done
    code=$(head -n 1 codes 2>/dev/null)
    sed -i 1d codes 2>/dev/null
    echo "step 7: a line of the log"
    exit "${code:-0}"
    ;;
  *) echo "python $*" >>calls ;;
esac
"""
GIT = f'for word; do case $word in --output=*) tar czf "${{word#--output=}}" -C {small.ROOT} experiments/launch ;; esac; done'
KUBECTL = """
echo "$*" >>calls
case $1 in
  get) if [ -f job ]; then cat job; else echo "Error from server (NotFound): jobsets retree not found" >&2; exit 1; fi ;;
  apply) cat >applied ;;
esac
"""


class StandIns:
  """A folder of programs that are found before the real ones, and of the files by which they are told what to do."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    for name, text in (
      ("gcloud", GCLOUD),
      ("git", GIT),
      ("kubectl", KUBECTL),
      ("srun", 'shift 2\necho "srun $*" >>calls\nexec "$@"'),
      ("scontrol", 'echo "scontrol $*" >>calls'),
      ("sudo", 'echo "sudo $*" >>calls\ncase "$*" in *install*) rm -f no_python ;; esac'),
      *((name, PYTHON) for name in ("python3.13", "python3.12", "python3.11")),
    ):
      self.program(name, text)
    (folder / "python3").symlink_to(sys.executable)
    # What a script makes beside itself, such as a virtual environment, it makes here.
    self.launch = folder / "project" / "experiments" / "launch"
    shutil.copytree(LAUNCH, self.launch)

  def program(self, name: str, text: str) -> None:
    # Every program works in the folder, wherever it is called.
    start = f'#!/bin/bash\nHERE={self.folder}\ncase $0 in *gcloud) ;; *) here=$PWD ;; esac\ncd "$HERE"\n'
    (self.folder / name).write_text(start + text.replace('mkdir -p "$3', 'cd "$here"; mkdir -p "$3'))
    (self.folder / name).chmod(0o755)

  def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
      ["bash", str(self.launch / script), *arguments],
      env={"PATH": f"{self.folder}:{PATH}", "HOME": str(self.folder), **environment},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      cwd=self.launch,
      start_new_session=True,
    )

  def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    process = self.start(script, *arguments, **environment)
    try:
      out, err = process.communicate(timeout=120)
    finally:
      process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)

  def write(self, name: str, text: str) -> None:
    (self.folder / name).write_text(text)

  def lines(self, name: str) -> list[str]:
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def wait_for(self, name: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(self.lines(name)) < count:
      assert time.monotonic() < deadline, f"{name} has {self.lines(name)}"
      time.sleep(0.02)

  def release(self) -> None:
    (self.folder / "hold").unlink()

  def verbs(self) -> list[str]:
    """What gcloud was called for, without the looks."""
    return [line.split()[3] for line in self.lines("calls") if line.startswith("compute") and " describe " not in line]


@pytest.fixture
def stand(tmp_path):
  made = StandIns(tmp_path)
  yield made
  (tmp_path / "hold").unlink(missing_ok=True)  # lets a run end that a failed test has left


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: apt-get install shellcheck")
def test_scripts_pass_shellcheck():
  done = subprocess.run(["shellcheck", *(str(LAUNCH / s) for s in SCRIPTS)], text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stdout


# --- Cloud TPU VM ---------------------------------------------------------------------------------------------------------


def test_tpu_dry_run_prints_the_whole_sequence(stand):
  done = stand.run("tpu_vm.sh", *TRAIN, DRY_RUN="1", SERVICE_ACCOUNT="a@p", **TPU)
  assert done.returncode == 0 and not stand.lines("calls"), done.stderr
  assert all(line.startswith("+ ") for line in done.stdout.splitlines())
  commands = [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]
  assert [c[4] for c in commands if c[0] == "gcloud"] == ["create", "scp", "ssh", "ssh"]
  options = {"--spot", "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e", "--zone=us-east5-b", "--service-account=a@p"}
  assert options <= set(commands[0])
  assert all("--worker=all" in c for c in commands if c[4:5] in (["ssh"], ["scp"]))
  deleted = stand.run("tpu_vm.sh", DRY_RUN="1", ACTION="delete", **TPU)
  assert deleted.stdout.split()[:6] == ["+", "gcloud", "compute", "tpus", "tpu-vm", "delete"]


@pytest.mark.parametrize(
  "kind, image", [("v5litepod-8", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")]
)
def test_the_image_goes_with_the_chip(stand, kind, image):
  assert f"--version={image} " in stand.run("tpu_vm.sh", *TRAIN, DRY_RUN="1", TYPE=kind, **TPU).stdout


def test_a_tpu_run_is_made_installed_started_and_watched_to_its_end(stand):
  done = stand.run("tpu_vm.sh", *TRAIN, **TPU)
  assert done.returncode == 0, done.stderr
  assert stand.verbs() == ["create", "scp", "ssh", "ssh", "ssh"]
  # What runs on the hosts is the training command, with the arguments as they were given.
  assert stand.lines("trained") == ["-m retree_jax.main --distributed=on --workdir=gs://b/retree " + " ".join(TRAIN)]
  assert "python -m pip install -q .[tpu,gcs]" in stand.lines("calls")


def test_a_slice_that_was_taken_away_is_made_again_and_the_run_resumes(stand):
  stand.write("hold", "")
  process = stand.start("tpu_vm.sh", *TRAIN, **TPU)
  stand.wait_for("trained")
  stand.write("vm", "PREEMPTED\n")
  stand.release()  # its processes end with it
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0 and "the TPU VM is PREEMPTED: it is made again" in err, err
  assert [v for v in stand.verbs() if v != "ssh"] == ["create", "scp", "delete", "create", "scp"]
  first, second = stand.lines("trained")
  assert first == second


def test_an_interrupted_run_is_started_again_on_the_same_slice(stand):
  stand.write("codes", "143\n137\n0\n")
  done = stand.run("tpu_vm.sh", *TRAIN, **TPU)
  assert done.returncode == 0 and "interrupted (retree: exit 143)" in done.stderr and "exit 137" in done.stderr
  assert len(stand.lines("trained")) == 3 and stand.verbs().count("create") == 1


@pytest.mark.parametrize("code", ["1", "2"])
def test_a_run_that_failed_is_not_started_again(stand, code):
  stand.write("codes", f"{code}\n")
  done = stand.run("tpu_vm.sh", *TRAIN, **TPU)
  assert done.returncode == 1 and len(stand.lines("trained")) == 1
  assert "step 7: a line of the log" in done.stderr and f"the run failed (retree: exit {code}): mend" in done.stderr


def test_where_there_is_no_slice_it_asks_again(stand):
  stand.write("fail_create", "2")
  done = stand.run("tpu_vm.sh", *TRAIN, **TPU)
  assert done.returncode == 0 and stand.verbs()[:4] == ["create", "create", "create", "scp"]
  stand.write("fail_describe", "9")
  done = stand.run("tpu_vm.sh", *TRAIN, TRIES="2", **TPU)
  assert (
    done.returncode == 1 and "describe failed on demand" in done.stderr and "after 2 attempts: try another ZONE" in done.stderr
  )


def test_a_network_that_is_down_for_a_while_ends_nothing(stand):
  stand.write("hold", "")
  process = stand.start("tpu_vm.sh", *TRAIN, **TPU)
  stand.wait_for("trained")
  stand.write("fail_ssh", "3")
  stand.write("fail_describe", "2")
  deadline = time.monotonic() + 60
  while (stand.lines("fail_ssh"), stand.lines("fail_describe")) != (["0"], ["0"]) and time.monotonic() < deadline:
    time.sleep(0.02)
  stand.release()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0 and "the hosts do not answer (3)" in err and len(stand.lines("trained")) == 1


def test_hosts_that_cannot_be_set_up_are_told_of(stand):
  stand.write("fail_scp", "1")
  done = stand.run("tpu_vm.sh", *TRAIN, **TPU)
  assert done.returncode == 1 and "the hosts cannot be set up: see the lines above" in done.stderr
  assert "scp failed on demand" in done.stderr and not stand.lines("trained")


def test_a_run_survives_its_connection_and_is_not_started_beside_itself(stand):
  stand.write("hold", "")
  process = stand.start("tpu_vm.sh", *TRAIN, **TPU)
  stand.wait_for("trained")
  os.killpg(process.pid, signal.SIGKILL)  # the script, gcloud and the shell that started the run
  process.communicate()
  again = stand.start("tpu_vm.sh", *TRAIN, **TPU)
  # The second one has installed, found the run running, and watches.
  deadline = time.monotonic() + 60
  while sum("worker.sh status" in line for line in stand.lines("calls")) < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
  stand.release()
  _, err = again.communicate(timeout=60)
  assert again.returncode == 0 and len(stand.lines("trained")) == 1, err


def test_stop_lets_the_run_save_and_nobody_starts_it_again(stand):
  stand.write("hold", "")
  watching = stand.start("tpu_vm.sh", *TRAIN, **TPU)
  stand.wait_for("trained")
  assert "retree: running" in stand.run("tpu_vm.sh", ACTION="status", **TPU).stdout
  assert "retree: interrupted" in stand.run("tpu_vm.sh", ACTION="stop", **TPU).stdout
  _, err = watching.communicate(timeout=60)
  assert watching.returncode == 1 and "the run was stopped; the same command resumes it" in err
  state = stand.folder / "home" / "retree_runs" / "retree"
  assert (state / "exit").read_text() == "143\n"  # what the command itself ended with
  stand.release()
  assert stand.run("tpu_vm.sh", *TRAIN, **TPU).returncode == 0 and len(stand.lines("trained")) == 2


def test_python_is_installed_where_the_image_has_none(stand):
  stand.write("no_python", "1")
  (stand.folder / "python3").unlink()
  (stand.folder / "python3").symlink_to(stand.folder / "python3.11")
  assert stand.run("worker.sh", "install", HOME=str(stand.folder)).returncode == 0
  assert any("install -y python3.11 python3.11-venv" in line for line in stand.lines("calls"))
  stand.write("no_python", "1")
  stand.program("sudo", "true")
  done = stand.run("worker.sh", "install")
  assert done.returncode == 2 and "no Python 3.11 and apt-get has none for it: choose a newer image" in done.stderr


# --- Slurm ----------------------------------------------------------------------------------------------------------------


def test_slurm_dry_run_prints_the_command(stand):
  done = stand.run("slurm.sbatch", "--config", "configs/tree.py", DRY_RUN="1", WORKDIR="/shared/runs/my tree")
  assert done.returncode == 0 and not stand.lines("calls"), done.stderr
  (line,) = done.stdout.splitlines()
  words = shlex.split(line)
  assert words[:2] == ["+", "srun"] and words[4:] == [
    ".venv/bin/python",
    "-m",
    "retree_jax.main",
    "--distributed=auto",
    "--workdir=/shared/runs/my tree",
    "--config",
    "configs/tree.py",
  ]


@pytest.mark.parametrize("code, requeued", [(143, True), (0, False), (1, False), (2, False)])
def test_slurm_requeues_what_was_stopped_before_its_end_and_nothing_else(stand, code, requeued):
  stand.write("codes", f"{code}\n")
  python = stand.folder / "python3.11"
  done = stand.run("slurm.sbatch", *TRAIN, WORKDIR="/w", SLURM_JOB_ID="42", PYTHON=str(python))
  assert done.returncode == code, done.stderr
  assert stand.lines("trained") == ["-m retree_jax.main --distributed=auto --workdir=/w " + " ".join(TRAIN)]
  assert ("scontrol requeue 42" in stand.lines("calls")) == requeued


def test_slurm_names_a_python_that_is_too_old(stand):
  stand.write("no_python", "1")
  done = stand.run("slurm.sbatch", *TRAIN, WORKDIR="/w", PYTHON=str(stand.folder / "python3.11"))
  assert done.returncode == 2 and "is missing or older than 3.11" in done.stderr and not stand.lines("trained")


# --- Kubernetes -----------------------------------------------------------------------------------------------------------


def test_kubernetes_job_is_whole(stand):
  yaml = pytest.importorskip("yaml")
  done = stand.run("gke.sh", *TRAIN, "--config.data.target=('tree',)", **GKE, NAME="eyes", SERVICE_ACCOUNT="trainer")
  assert done.returncode == 0, done.stderr
  job = yaml.safe_load((stand.folder / "applied").read_text())
  assert job["kind"] == "JobSet" and job["metadata"]["name"] == "eyes" and job["spec"]["failurePolicy"]["maxRestarts"] > 0
  pods = job["spec"]["replicatedJobs"][0]["template"]["spec"]
  inner = pods["template"]["spec"]
  (container,) = inner["containers"]
  # Hosts times chips a host are the chips of the topology.
  x, y = inner["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert pods["parallelism"] == pods["completions"]
  assert pods["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == int(x) * int(y)
  assert container["command"] == ["python", "-m", "retree_jax.main"] and container["image"] == "registry/retree:1"
  assert container["args"] == ["--distributed=on", "--workdir=gs://b/eyes", *TRAIN, "--config.data.target=('tree',)"]
  assert inner["serviceAccountName"] == "trainer" and inner["restartPolicy"] == "Never"
  # Bad input ends the job; a run that was stopped does not.
  (rule,) = pods["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"] == {"containerName": "train", "operator": "In", "values": [2]}
  assert "volumes" not in inner  # the bucket is read and written directly


def test_kubernetes_job_is_applied_once(stand):
  assert stand.run("gke.sh", *TRAIN, **GKE).returncode == 0
  stand.write("job", "")  # there, and not at its end
  (stand.folder / "applied").unlink()
  done = stand.run("gke.sh", *TRAIN, **GKE)
  assert done.returncode == 1 and "the job retree is running" in done.stderr and not stand.lines("applied")
  stand.write("job", "Completed")
  assert stand.run("gke.sh", *TRAIN, **GKE).returncode == 0 and stand.lines("applied")
  assert "delete jobset retree" in stand.lines("calls")
  stand.program("kubectl", "echo 'Unable to connect to the server' >&2; exit 1")
  (stand.folder / "applied").unlink()
  done = stand.run("gke.sh", *TRAIN, **GKE)
  assert done.returncode == 1 and "Unable to connect" in done.stderr and not stand.lines("applied")


def test_kubernetes_dry_run_starts_nothing(stand):
  done = stand.run("gke.sh", *TRAIN, DRY_RUN="1", **GKE)
  assert done.returncode == 0 and "kind: JobSet" in done.stdout and not stand.lines("calls") and "${" not in done.stdout


# --- All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "script, environment, words",
  [
    ("tpu_vm.sh", {}, "NAME"),
    ("tpu_vm.sh", {**TPU, "BUCKET": "runs"}, "BUCKET=runs is no bucket: write BUCKET=gs://NAME"),
    ("tpu_vm.sh", TPU, "what to train is missing"),
    ("tpu_vm.sh", {**TPU, "ACTION": "dance"}, "ACTION=dance is unknown: use train, status, stop or delete"),
    ("worker.sh", {}, "'' is unknown: use install"),
    ("gke.sh", {}, "IMAGE: is missing"),
    ("gke.sh", {**GKE, "BUCKET": "b"}, "BUCKET=b is no bucket"),
    ("gke.sh", GKE, "what to train is missing"),
    ("slurm.sbatch", {}, "WORKDIR: is missing"),
    ("slurm.sbatch", {"WORKDIR": "/w"}, "what to train is missing"),
  ],
)
def test_what_is_missing_is_said(stand, script, environment, words):
  done = stand.run(script, **environment)
  assert done.returncode != 0 and words in done.stderr and not done.stdout and not stand.lines("calls")


def test_commands_use_flags_that_exist():
  known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (small.ROOT / "retree_jax" / "main.py").read_text()))
  text = "".join((LAUNCH / name).read_text() for name in (*SCRIPTS, "gke_job.yaml"))
  used = set(re.findall(r"--(distributed|workdir|config|coordinator|num_processes|process_id)\b", text))
  assert {"distributed", "workdir", "config"} <= used and used <= known
