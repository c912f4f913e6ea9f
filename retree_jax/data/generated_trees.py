"""Generated trees from a folder, which the tree filter is trained on and its threshold is tested on."""

import numpy as np
from absl import logging
from etils import epath

from retree_jax.data import image_io, splits, transforms

_MAX_BYTES = 32 * 2**20  # of generated trees, because they become a constant of the compiled step


def read(folder, size: tuple[int, int], kind: str = "coverage") -> tuple[np.ndarray, np.ndarray]:
  """Reads generated trees as coverage maps, before thresholding.

  Args:
    folder: output of `python -m retree_jax.generate --tree DIR --num 500 --out FOLDER`.
    size: (height, width) to resize them to, by area averages.
    kind: "coverage", or "fov" for the trees' fields of view; all 255 where the folder holds none.

  Returns:
    (training, held-out), uint8 [N, H, W, 1] each; about one in five is held out, by a hash of its name.

  Raises:
    ValueError: no such folder, or too few trees in it.
  """
  how = "python -m retree_jax.generate --tree runs/tree --num 500 --out runs/trees, and --config.data.generated=runs/trees"
  if not folder:
    raise ValueError(f"config.data.generated is empty: the filter is trained on real and generated trees; make some with {how}")
  folder = epath.Path(folder).expanduser()
  coverage = folder / "coverage"
  names = sorted(p.name for p in coverage.iterdir() if p.suffix == ".png") if coverage.is_dir() else []
  if len(names) < 2:
    raise ValueError(f"{folder} holds no trees in coverage/: make some with {how}")
  limit = max(2, _MAX_BYTES // (size[0] * size[1]))
  if len(names) > limit:
    logging.info("The filter uses the first %d of %d generated trees", limit, len(names))
  train, heldout = splits.hold_out(names[:limit])

  images = folder / kind
  if kind == "fov" and not images.is_dir():
    return tuple(np.full((len(chosen), *size, 1), 255, np.uint8) for chosen in (train, heldout))

  def load(chosen):
    pixels = [image_io.decode((images / name).read_bytes(), str(images / name)) for name in chosen]
    return np.stack([transforms.area_resize(p if p.ndim == 3 else p[..., None], size)[..., :1] for p in pixels])

  return load(train), load(heldout)
