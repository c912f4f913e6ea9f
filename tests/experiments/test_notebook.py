"""The notebooks run from top to bottom on small settings, and are committed without what a run leaves in them."""

import json
import os

import jax
import pytest

from retree_jax import train
from tests import small

FOLDER = small.ROOT / "experiments" / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_without_outputs_and_one_screen_per_cell(path):
  for cell in json.loads(path.read_text())["cells"]:
    assert len(cell["source"]) <= 40
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None


def execute(name, folder, parameters="", **environment):
  """(what was printed, output data by MIME type) of a notebook whose cell tagged "parameters" is followed by `parameters`."""
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  environment |= {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  environment |= {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder / "ipython")}
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(small.ROOT), environment.get("PYTHONPATH"))))
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
  if parameters:
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells[place].source += "\n" + parameters
  client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
  client.execute(env=environment)  # raises at the first cell that fails
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
  return text, [data for output in outputs if output.output_type == "display_data" for data in output.data]


def test_samples_and_plots_a_run_trained_here(tmp_path):
  config = small.config(train__num_steps=3, evaluate__every=3, checkpoint__every=3)
  train.train(config, tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  text, data = execute("sample_trees", tmp_path, RETREE_WORKDIR=str(tmp_path / "run"))
  assert "step 3," in text and "16×16 pixels" in text and "read by Orbax alone: the same" in text
  assert sum(line.startswith("tree ") for line in text.splitlines()) == 8
  assert data.count("image/png") == 3  # samples, noise levels, loss curve


def test_paints_a_mask(tmp_path):
  text, data = execute("paint_a_mask", tmp_path, "NUM, STEPS, STAGES = 1, 3, {'fundus': 'fundus'}")
  assert data.count("image/png") == 2
  assert float(text.split("darker ")[1][:5]) > 0.8  # after three steps of ten already


def test_trains_on_a_folder(tmp_path):
  changes = '{"data.image_size": (32, 32), "sampler.num_steps": 2, "train.batch_size": 8}'
  text, data = execute("train_on_your_folder", tmp_path, f"STEPS, CHANGES = 4, {changes}")
  assert "eyes to train on" in text and data.count("image/png") == 3
  assert (tmp_path / "runs/notebook/checkpoints/4").is_dir()


def test_audit_finds_the_copies_that_were_hidden(tmp_path):
  text, data = execute("audit_privacy", tmp_path, "EYES, SIDE = 20, 96")
  assert "copied 3 of 20, named [0, 1, 2]" in text and data.count("image/png") == 2


def test_compares_ratios(tmp_path):
  flags = ["--config", "segmentation:tiny", "--config.data.image_size=(32, 32)", "--config.crop.size=16"]
  flags += ["--config.sampler.overlap=4"]
  text, data = execute("how_much_to_mix", tmp_path, f'RATIOS, SEEDS, STEPS, EYES, CONFIG = "0,1", 1, 2, 4, {flags}')
  assert "image/svg+xml" in data and "text/markdown" in data
