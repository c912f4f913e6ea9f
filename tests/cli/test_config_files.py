"""Built-in configs are found by name from any folder; files of the user's own by path."""

import pytest

from retree_jax.cli import config_files
from tests import small


def test_a_name_and_the_old_path_are_the_same_file_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = str(small.ROOT / "configs" / "tree.py")
  assert config_files.find("tree") == config_files.find("configs/tree.py") == file
  assert config_files.find("tree:tiny") == config_files.find("configs/tree.py:tiny") == file + ":tiny"


def test_a_file_of_the_users_own_comes_before_the_built_in_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for own in ("configs/tree.py", "mine.py"):
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).touch()
    assert config_files.find(f"{own}:cpu") == f"{own}:cpu"


@pytest.mark.parametrize("config", ["branch", "branch.py", "configs/branch.py", "elsewhere/tree.py", "configs/tree"])
def test_what_is_not_there_is_named(config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=rf"^there is no config file {config}: name one, or a built-in config \(.*tree"):
    config_files.find(config)


def test_only_config_flags_are_resolved():
  path = config_files.find("tree:tiny")
  argv = ["main", "--config", "tree:tiny", "--config=tree:tiny", "-config", "tree:tiny", "--config.seed=3", "--out", "tree"]
  assert config_files.resolve(argv) == [
    *("main", "--config", path, f"--config={path}", "-config", path),
    *("--config.seed=3", "--out", "tree"),
  ]


def test_every_config_has_the_variants_that_are_listed():
  assert {"tree", "filter", "fundus", "superres", "segmentation"} <= set(config_files.names())
  for name in config_files.names():
    scope = {}
    exec((config_files.folder() / f"{name}.py").read_text(), scope)  # as any loader of the file does
    for variant in config_files.variants(name):
      assert scope["get_config"](variant).stage == name
    with pytest.raises(ValueError, match="variant 'huge' is unknown"):
      scope["get_config"]("huge")
