"""The wheel holds configs, weights and licence and works in an empty folder; the dependencies are what is imported."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

import retree_jax
from tests import small, test_house

PROJECT = tomllib.loads((small.ROOT / "pyproject.toml").read_text())["project"]
# Packages whose modules are called differently.
MODULES = {
  "absl-py": "absl",
  "orbax-checkpoint": "orbax",
  "pillow": "PIL",
  "protobuf": "google",
  "scikit-image": "skimage",
  "ml-collections": "ml_collections",
}


def test_the_version_stands_in_one_place():
  assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
  assert re.fullmatch(r"\d+\.\d+\.\d+", retree_jax.__version__)
  hits = [p.name for p in small.ROOT.glob("*.cff") if re.search(r"^version:", p.read_text(), re.MULTILINE)]
  assert not hits, f"{hits} would have to be changed with every version"


def test_dependencies_are_what_the_package_imports():
  files = [*small.ROOT.glob("retree_jax/**/*.py"), *small.ROOT.glob("configs/*.py")]
  files += [small.ROOT / "experiments" / name for name in ("reproduce.py", "validation.py")]
  used = test_house.packages(node for path in files for node in ast.walk(ast.parse(path.read_text())))
  used -= {*sys.stdlib_module_names, "retree_jax", "experiments"}
  declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
  extras = {re.match(r"[\w-]+", line)[0] for lines in PROJECT["optional-dependencies"].values() for line in lines}
  names = {MODULES.get(name, name.replace("-", "_")): name for name in declared | extras}
  assert {name for name in declared if MODULES.get(name, name.replace("-", "_")) not in used} == set(), "imported by nothing"
  assert used - set(names) == set(), "not among the dependencies"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with the wheel unpacked in it, as an installer does."""
  pytest.importorskip("hatchling", reason="needs hatchling to build the wheel")
  folder = tmp_path_factory.mktemp("package")
  command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
  done = subprocess.run(command, cwd=small.ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  (wheel,) = (folder / "dist").iterdir()
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "site")
  return folder / "site"


def test_the_wheel_holds_everything_and_nothing_else(installed):
  files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
  tracked = {
    str(p.relative_to(small.ROOT))
    for p in (small.ROOT / "retree_jax").rglob("*")
    if p.is_file() and "__pycache__" not in p.parts
  }
  extra = {f"retree_jax/configs/{p.name}" for p in (small.ROOT / "configs").glob("*.py")}
  extra |= {
    f"retree_jax/experiments/{name}.py" for name in ("__init__", "mixing", "reproduce", "validation", "validation_tables")
  }
  info = f"retree_jax-{retree_jax.__version__}.dist-info"
  assert {f for f in files if not f.startswith(info)} == tracked | extra
  assert f"{info}/licenses/LICENSE" in files
  assert "retree-jax = retree_jax.__main__:main" in (installed / info / "entry_points.txt").read_text()
  metadata = (installed / info / "METADATA").read_text()
  assert f"\nVersion: {retree_jax.__version__}\n" in metadata and "License-Expression: Apache-2.0" in metadata


def start(installed, folder, *arguments):
  """Starts `python -m retree_jax` of the unpacked wheel in another folder."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "RETREE_"))}
  environment |= {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "RETREE_JAX_CPU_SETTINGS": "off"}
  command = [sys.executable, "-m", "retree_jax", *arguments]
  return subprocess.Popen(command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_commands_of_the_wheel_work_in_an_empty_folder(installed, tmp_path):
  started = {
    "info": start(installed, tmp_path, "info", "--json"),
    "train": start(installed, tmp_path, "train", "--config", "tree:tiny", *small.FLAGS, "--config.train.num_steps=1"),
    "old form": start(installed, tmp_path, "train", "--config=configs/tree.py:huge"),
    "reproduce": start(installed, tmp_path, "reproduce", "--labelled=nowhere", "--out=chain"),
    "validate": start(installed, tmp_path, "validate", "--config", "segmentation:tiny"),
  }
  said = {name: process.communicate(timeout=600)[0] for name, process in started.items()}
  assert {name: process.returncode for name, process in started.items()} == {
    "info": 0,
    "train": 0,
    "old form": 2,
    "reproduce": 2,
    "validate": 2,
  }, said
  facts = json.loads(said["info"])
  assert set(facts["models"]) == {p.name for p in (small.ROOT / "retree_jax/weights").iterdir()}
  assert set(facts["configs"]) == {p.stem for p in (small.ROOT / "configs").glob("*.py")}
  assert (tmp_path / "runs/tree/checkpoints/1").is_dir()
  assert "variant 'huge' is unknown" in said["old form"]
  assert "nowhere is not a folder" in said["reproduce"] and "--real or --generated is missing" in said["validate"]
