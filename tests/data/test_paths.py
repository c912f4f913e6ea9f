"""Whole paths, on disks and in buckets."""

import pathlib

from etils import epath

from retree_jax.data import paths


def test_only_what_is_relative_gets_the_working_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert paths.absolute("runs/tree") == epath.Path(tmp_path) / "runs/tree"
  assert paths.absolute(pathlib.Path("/runs/tree")) == epath.Path("/runs/tree")
  assert str(paths.absolute("gs://bucket/runs/tree")) == "gs://bucket/runs/tree"
