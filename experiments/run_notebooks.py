"""Runs notebooks from top to bottom and keeps the pictures and numbers that they show.

python -m experiments.run_notebooks experiments/notebooks/*.ipynb
"""

import os
import pathlib
import sys
import tempfile

from retree_jax.cli import errors

ROOT = pathlib.Path(__file__).resolve().parents[1]


def execute(path: pathlib.Path, folder: pathlib.Path, parameters: str = "", timeout: int = 300, **environment: str):
  """A notebook with the outputs of a run on the CPU.

  Args:
    path: the notebook.
    folder: where it runs, and leaves its files.
    parameters: code that follows that of the cell tagged "parameters".
    timeout: of a cell, in seconds.
    **environment: variables of the run.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell fails.
  """
  import nbclient
  import nbformat

  environment |= {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_")) and k not in environment}
  environment |= {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder / "ipython")}
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
  notebook = nbformat.read(path, as_version=4)
  if parameters:
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells[place].source += "\n" + parameters
  settings = {"timeout": timeout, "kernel_name": "python3", "record_timing": False}
  nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **settings).execute(env=environment)
  return notebook


def main(paths: list[str]) -> None:
  """Writes the outputs of notebooks into them: what is displayed and printed, without warnings and logs."""
  import nbformat

  if lost := [path for path in paths if not os.path.isfile(path)]:
    raise ValueError(f"{lost[0]} is not a file: name notebooks")
  for path in map(pathlib.Path, paths):
    with tempfile.TemporaryDirectory() as folder:
      notebook = execute(path, pathlib.Path(folder), timeout=3600)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
      if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)
    print(path, path.stat().st_size // 1024, "KB")


if __name__ == "__main__":
  sys.exit(errors.run(lambda: main(sys.argv[1:])))
