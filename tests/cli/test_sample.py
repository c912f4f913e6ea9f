"""`--mode sample` into folders: what is there is listed, what is listed is there, and another's files are left alone."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from retree_jax import checkpoint
from retree_jax.cli import stages as commands
from retree_jax.data import claim, provenance, sources, writing
from tests import stages


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  return stages.chain(tmp_path_factory.mktemp("models"))


def labels(folder) -> list[str]:
  """Who drew each mask of a folder, without a look at the pixels: those of random weights are no trees."""
  return list(sources.open_source(f"folder:{folder}", split="all", fields=("tree",))._labels.values())


def test_fewer_samples_than_before_leave_none_unlisted(chain, tmp_path, capsys):
  out = tmp_path / "samples"
  commands.sample("tree", chain["tree"], num=5, out=out)
  five = stages.files(out)
  assert len(stages.manifest(out)) == 5 and labels(out) == ["generated"] * 5
  commands.sample("tree", chain["tree"], num=2, out=out)
  assert "samples holds 5 samples already, more than the 2 asked for: all of them are kept" in capsys.readouterr().err
  assert stages.files(out) == five
  commands.sample("tree", chain["tree"], num=6, out=out)
  assert len(stages.manifest(out)) == 6 and labels(out) == ["generated"] * 6
  commands.sample("tree", chain["tree"], num=6, out=tmp_path / "six")
  assert stages.files(out) == stages.files(tmp_path / "six")


def test_a_mistyped_number_can_be_lowered(chain, tmp_path, monkeypatch):
  out, real, written = tmp_path / "samples", writing.write_png, []

  def killed(path, pixels, text):
    if len(written) == 4:
      raise KeyboardInterrupt
    written.append(path)
    real(path, pixels, text)

  with monkeypatch.context() as m:
    m.setattr(writing, "write_png", killed)
    m.setattr(commands, "_CHUNK", 4)
    with pytest.raises(KeyboardInterrupt):
      commands.sample("tree", chain["tree"], num=50_000, out=out)
  # Killed at that moment, the folder tells no lies: every mask is listed as generated.
  assert labels(out) == ["generated"] * 2
  commands.sample("tree", chain["tree"], num=3, out=out)
  assert len(stages.manifest(out)) == 3 == len(labels(out))


def test_system_files_do_not_matter_and_other_files_are_left_alone(chain, tmp_path):
  (tmp_path / "samples/lost+found").mkdir(parents=True)
  (tmp_path / "samples/.DS_Store").write_text("")
  commands.sample("tree", chain["tree"], num=1, out=tmp_path / "samples")
  writing.write_png(tmp_path / "mine/masks/eye.png", np.zeros((4, 4), np.uint8))
  before = stages.files(tmp_path / "mine")
  with pytest.raises(ValueError, match="mine holds files that this command did not write"):
    commands.sample("tree", chain["tree"], num=1, out=tmp_path / "mine")
  assert stages.files(tmp_path / "mine") == before


def test_a_folder_in_use_is_refused(chain, tmp_path):
  with claim.hold(tmp_path / "out", "sampling"), pytest.raises(ValueError, match="has been sampling there"):
    commands.sample("tree", chain["tree"], num=1, out=tmp_path / "out")


def test_given_trees_are_known_by_their_contents_and_their_number_may_grow(chain, tmp_path):
  for folder, row in (("a", 4), ("b", 9)):
    for name in ("x", "y", "z"):
      mask = np.zeros((16, 16, 1), np.uint8)
      mask[row : row + 2, 2:14] = 255
      writing.write_png(tmp_path / folder / f"{name}.png", mask)
  paint = {"num": 1, "out": tmp_path / "painted"}
  commands.sample("fundus", chain["fundus"], inputs=tmp_path / "a", **paint)
  commands.sample("fundus", chain["fundus"], inputs=tmp_path / "a", **{**paint, "num": 2})
  assert [row["name"] for row in stages.manifest(tmp_path / "painted")] == ["x", "y"]
  assert sorted(p.name for p in (tmp_path / "painted/images").iterdir()) == ["x.png", "y.png"]
  made = {folder: provenance.is_synthetic(tmp_path / f"painted/{folder}/y.png") for folder in ("images", "masks")}
  assert made == {"images": True, "masks": False}
  with pytest.raises(ValueError, match="painted holds another run .inputs is "):
    commands.sample("fundus", chain["fundus"], inputs=tmp_path / "b", **paint)


def test_trees_that_are_gone(chain, tmp_path):
  gone = {"data.source": f"folder:{tmp_path / 'gone'}"}
  with pytest.raises(
    ValueError, match=r"Without --input FOLDER the test trees .* are painted. The folder .*gone does not exist"
  ):
    commands.sample("fundus", chain["fundus"], out=tmp_path / "out", overrides=gone)


def test_conditions_are_loaded_a_chunk_at_a_time(chain, tmp_path, monkeypatch):
  """Eleven trees in chunks of four: never more than one chunk, and the photographs are those of one whole chunk."""
  for k in range(11):
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[k + 1 : k + 3, 2:14] = 255
    writing.write_png(tmp_path / f"trees/{k:02d}.png", mask)
  commands.sample("fundus", chain["fundus"], inputs=tmp_path / "trees", out=tmp_path / "whole")
  sizes, real = [], commands.Sampler.__call__

  def counted(self, params, indices, condition, **options):
    sizes.append((len(indices), *(len(c) for c in condition.values())))
    return real(self, params, indices, condition, **options)

  monkeypatch.setattr(commands, "_CHUNK", 4)
  monkeypatch.setattr(commands.Sampler, "__call__", counted)
  commands.sample("fundus", chain["fundus"], inputs=tmp_path / "trees", out=tmp_path / "chunks")
  assert sizes == [(4, 4, 4), (4, 4, 4), (3, 3, 3)]
  assert stages.files(tmp_path / "chunks") == stages.files(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["tree", "superres"])
def test_process_0_alone_writes(chain, tmp_path, monkeypatch, stage):
  """Another process of the job samples along, and leaves every file to the first."""
  out = tmp_path / "out"
  flags = {"num": 2, "out": out}
  if stage == "superres":
    line = np.zeros((8, 8, 1), np.uint8)
    line[4, 1:7] = 255
    writing.write_png(tmp_path / "small/images/0.png", np.full((8, 8, 3), 200, np.uint8) - line // 2)
    writing.write_png(tmp_path / "small/masks/0.png", line)

    class Enlarger:
      input_size = (8, 8)

      def __init__(self, config, network, mesh):
        pass

      def __call__(self, params, fields):
        return fields

    monkeypatch.setattr("retree_jax.inference.superres.Enlarger", Enlarger)
    flags["inputs"] = tmp_path / "small"
  loaded = checkpoint.load(chain["tree"])
  monkeypatch.setattr(checkpoint, "load", lambda *args, **options: loaded)
  commands.sample(stage, chain["tree"], **flags)
  before = stages.files(out)
  monkeypatch.setattr(writing, "write_stream", lambda path, pieces: pytest.fail(f"{path} was written by process 1"))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", np.zeros_like)
  monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
  commands.sample(stage, chain["tree"], **flags)
  assert stages.files(out) == before
