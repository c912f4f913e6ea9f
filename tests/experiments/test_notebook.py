"""The notebook runs from top to bottom on a run trained here, and is committed without what a run leaves in it."""

import json
import os

import jax
import pytest

from retree_jax import train
from tests import small

NOTEBOOKS = sorted((small.ROOT / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs(path):
  for cell in json.loads(path.read_text())["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None


def test_samples_and_plots_a_run_trained_here(tmp_path, monkeypatch):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  config = small.config(train__num_steps=3, evaluate__every=3, checkpoint__every=3)
  train.train(config, tmp_path / "run", arrays=small.arrays(), devices=jax.devices()[:1])
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  environment |= {"RETREE_WORKDIR": str(tmp_path / "run"), "JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(tmp_path / "ipython")}
  notebook = nbformat.read(small.ROOT / "experiments/notebooks/sample_trees.ipynb", as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute(env=environment)  # raises at the first cell that fails

  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
  assert "step 3," in text and "16×16 pixels" in text
  assert sum(line.startswith("tree ") for line in text.splitlines()) == 8
  figures = [output for output in outputs if output.output_type == "display_data" and "image/png" in output.data]
  assert len(figures) == 3  # samples, noise levels, loss curve
