"""The gallery: pictures drawn by the shipped models while the site is built, and kept until models or drawing change."""

import hashlib
import inspect
import pathlib
import sys

import numpy as np

NUM = 6
_SIDE = 192  # of a picture in the gallery, in pixels

PAGE = """# Gallery

These pictures were drawn while this site was built, by the models that the package ships, with the seeds named here.

## Six pairs

The first six pairs of seed 0: photograph, vessel tree, and the tree drawn over the photograph. `retree-jax generate --num 6
--out out` writes the same pairs at 512×512.

![Six generated photographs, their vessel trees, and both together](gallery/pairs.png)

## One tree, six photographs

The tree of the first pair, painted six times. The vessels stay, and the rest is drawn anew: the colour, the lighting, the disc.

![One vessel tree and six photographs painted over it](gallery/painted.png)

## Simulated eyes

Phantoms 0 to 5, which no model has drawn: they let every command run without data (`--config.data.source=phantom:400`).

![Six simulated photographs and their vessel trees](gallery/phantoms.png)
"""


def pictures(cache: pathlib.Path) -> dict[str, pathlib.Path]:
  """{path in the site: PNG file} of the gallery; drawn where `cache` does not hold them yet.

  Args:
    cache: folder of pictures by the identity of the shipped weights and of this file.
  """
  from retree_jax.data import fingerprint

  weights = pathlib.Path(__file__).resolve().parents[2] / "retree_jax" / "weights"
  drawing = inspect.getsource(sys.modules[__name__])
  folder = cache / hashlib.sha256((fingerprint.of_path(weights) + drawing).encode()).hexdigest()[:16]
  found = {f"gallery/{name}.png": folder / f"{name}.png" for name in ("pairs", "painted", "phantoms")}
  if not all(path.exists() for path in found.values()):
    _draw(folder)
  return found


def _draw(folder: pathlib.Path) -> None:
  from retree_jax import generate
  from retree_jax.data import montage, phantom, writing
  from retree_jax.inference import dataset_writer

  generator = generate.Generator(generate.load_models(**dataset_writer.shipped()))
  trees, records = generator.trees(np.arange(NUM), seed=0)
  drawn = generator.photographs(trees, np.arange(NUM), seed=0, tilts=generate.tilts(records))
  photographs, masks = (_sized(drawn[name]) for name in ("image", "tree"))
  both = np.stack([montage.overlay(image, tree) for image, tree in zip(photographs, masks, strict=True)])
  first = {name: np.repeat(pixels[:1], NUM, axis=0) for name, pixels in trees.items()}
  painted = generator.photographs(first, np.arange(NUM), seed=0, tilts=[records[0]["tilt"]] * NUM)
  eyes = [phantom.eye(seed, (_SIDE, _SIDE)) for seed in range(NUM)]
  sheets = {
    "pairs": montage.rows(photographs, masks, both),
    "painted": montage.grid(np.concatenate([montage.to_rgb(masks[:1]), _sized(painted["image"])]), columns=NUM + 1),
    "phantoms": montage.rows(*(np.stack([eye[name] for eye in eyes]) for name in ("image", "tree"))),
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name, sheet in sheets.items():
    writing.write_png(folder / f"{name}.png", sheet)


def _sized(pixels: np.ndarray) -> np.ndarray:
  from retree_jax.data import transforms

  return np.stack([transforms.area_resize(picture, (_SIDE, _SIDE)) for picture in pixels])
