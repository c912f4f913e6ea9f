"""Paths on disks and in buckets."""

import os

from etils import epath


def absolute(path: os.PathLike | str) -> epath.Path:
  """The whole path of a file or folder, as Orbax wants it; a bucket's URL is whole already.

  `epath.Path("gs://bucket/run").absolute()` would put the working directory before the URL.
  """
  path = epath.Path(path)
  return path if path.is_absolute() else path.absolute()
