"""The notebooks run from top to bottom on small settings; those committed hold the pictures of a whole run."""

import json

import jax
import pytest

from experiments import run_notebooks
from retree_jax import train
from tests import small

FOLDER = small.ROOT / "experiments" / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_one_screen_per_cell_with_the_pictures_of_one_run(path):
  cells = json.loads(path.read_text())["cells"]
  assert all(len(cell["source"]) <= 40 for cell in cells)
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell["outputs"]]
  assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", ()))
  assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
  assert path.stat().st_size < 400_000 and "find_spec" in "".join(code[0]["source"])  # the cell that installs the package


def execute(name, folder, parameters="", **environment):
  """(what was printed, output data by MIME type) of a notebook."""
  pytest.importorskip("nbclient")
  notebook = run_notebooks.execute(FOLDER / f"{name}.ipynb", folder, parameters, **environment)
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
  return text, [data for output in outputs if output.output_type == "display_data" for data in output.data]


def test_samples_and_plots_a_run_trained_here(tmp_path):
  config = small.config(train__num_steps=3, evaluate__every=3, checkpoint__every=3)
  train.train(config, tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  devices = "--xla_force_host_platform_device_count=2"
  text, data = execute("sample_trees", tmp_path, f"WORKDIR = {str(tmp_path / 'run')!r}", XLA_FLAGS=devices)
  assert "devices: 2, greatest difference from one device: 0 of 255" in text
  assert "step 3," in text and "16×16 pixels" in text and "read by Orbax alone: the same" in text
  assert sum(line.startswith("tree ") for line in text.splitlines()) == 8
  assert data.count("image/jpeg") == 3  # samples, noise levels, loss curve


def test_paints_a_mask(tmp_path):
  text, data = execute("paint_a_mask", tmp_path, "NUM, STEPS, STAGES = 1, 3, {'fundus': 'fundus'}")
  assert data.count("image/jpeg") == 2
  assert float(text.split("darker ")[1][:5]) > 0.8  # after three steps of ten already


def test_trains_on_a_folder(tmp_path):
  model = {"patch": 1, "detail": 0, "widths": (8,), "blocks": (1,), "attention": (), "middle": 0, "head_width": 4}
  changes = {f"model.{name}": value for name, value in model.items()}
  changes |= {"data.image_size": (16, 16), "sampler.num_steps": 2, "train.batch_size": 8}
  text, data = execute("train_on_your_folder", tmp_path, f"STEPS, CHANGES = 4, {changes}")
  assert "eyes to train on" in text and data.count("image/jpeg") == 3
  assert (tmp_path / "runs/notebook/checkpoints/4").is_dir()


def test_audit_finds_the_copies_that_were_hidden(tmp_path):
  text, data = execute("audit_privacy", tmp_path, "EYES, SIDE = 20, 96")
  assert "copied 3 of 20, named [0, 1, 2]" in text and data.count("image/jpeg") == 2


def test_compares_ratios(tmp_path):
  flags = ["--config", "segmentation:tiny", "--config.data.image_size=(32, 32)", "--config.crop.size=16"]
  flags += ["--config.sampler.overlap=4"]
  text, data = execute("how_much_to_mix", tmp_path, f'RATIOS, SEEDS, STEPS, EYES, CONFIG = "0,1", 1, 2, 4, {flags}')
  assert "image/svg+xml" in data and "text/markdown" in data
