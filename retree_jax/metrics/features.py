"""Feature vectors of pictures, for the image distances and the privacy audit.

An `Extractor` is a named function of pictures. The report gives the name, because distances over different
features cannot be compared. "inception" and "vgg19" need weights from the user. "scattering" needs none and
works on every machine, but no published numbers compare with it. To use another network, wrap it as
`Extractor("name", function)`.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np

from retree_jax.models import scaling
from retree_jax.models.pretrained import inception, vgg

EXTRACTORS = ("inception", "vgg19", "scattering")


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A named function: [B, H, W, 3] float32 in [-1, 1] -> [B, d]. The report gives the name."""

  name: str
  function: Callable[[jax.Array], jax.Array]

  def __call__(self, images: jax.Array) -> jax.Array:
    return self.function(images)


def extractor(name: str, weights_path: str | os.PathLike | None = None) -> Extractor:
  """A ready extractor by name.

  Args:
    name: "inception" (pool3 of the FID network, 2048 numbers; "inception:pytorch" for the resize of the
      PyTorch port), "vgg19" (spatial means of the last activation of every block that the weights have,
      each block divided by its root mean square on one fixed picture),
      "scattering" (wavelet energies and colour statistics, no weights).
    weights_path: file for the first two, see `models.inception.load_weights` and `models.vgg.load_weights`.

  Raises:
    ValueError: unknown name, weights missing or unreadable.
  """
  kind, _, variant = name.partition(":")
  if kind not in EXTRACTORS or (variant and kind != "inception"):
    raise ValueError(f"Feature extractor {name!r} is unknown: write one of {', '.join(EXTRACTORS)}.")
  if kind == "scattering":
    return Extractor("scattering", jax.jit(scattering))
  if weights_path is None:
    raise ValueError(f"Features {name!r} need a weights file: give its path, or use 'scattering', which needs none.")
  if kind == "inception":
    preprocessing = variant or "tensorflow"
    if preprocessing not in inception.PREPROCESSING:
      raise ValueError(f"Feature extractor {name!r} is unknown: write inception:tensorflow or inception:pytorch.")
    params = inception.load_weights(weights_path)
    apply = jax.jit(functools.partial(inception.features, preprocessing=preprocessing))
    return Extractor(f"inception-2015-12-05 pool3, {preprocessing} resize", functools.partial(apply, params))
  params = vgg.load_weights(weights_path)
  layers = [name for name in ("relu1_2", "relu2_2", "relu3_4", "relu4_4", "relu5_4") if name in vgg.available(params)]
  if not layers:
    raise ValueError(f"{weights_path} does not hold even VGG19's first block: use a file with more layers.")

  scales = vgg.scales(params, layers)

  @jax.jit
  def means(params, images):
    activations = vgg.features(params, images, layers, precision="highest")
    return jnp.concatenate([activations[layer].mean((1, 2)) / scales[layer] for layer in layers], -1)

  return Extractor(f"vgg19 means of {', '.join(layers)}", functools.partial(means, params))


def extract(images: np.ndarray | Sequence[np.ndarray], extractor: Extractor, batch_size: int = 32) -> np.ndarray:
  """Features of a set of pictures.

  Args:
    images: uint8 [N, H, W, C] or a sequence of equally large [H, W, C]; C = 1 (a tree) is repeated to 3.
    extractor: see `extractor`.
    batch_size: pictures per call; the last batch is padded, so that only one shape is compiled.

  Returns:
    [N, d] float32.

  Raises:
    ValueError: no pictures, not uint8, sizes differ, channels not 1 or 3, features not finite.
  """
  if len(images) == 0:
    raise ValueError("There are no images to take features of: check the folder.")
  shapes = {np.shape(image) for image in images} if not isinstance(images, np.ndarray) else {images.shape[1:]}
  if len(shapes) > 1:
    raise ValueError(f"Images differ in size ({sorted(shapes)[:3]} ...): bring them to one size first.")
  shape = shapes.pop()
  if len(shape) != 3 or shape[-1] not in (1, 3) or np.asarray(images[0]).dtype != np.uint8:
    raise ValueError(
      f"Features are taken of uint8 images [N, height, width, 1 or 3], not {np.asarray(images[0]).dtype} "
      f"[N, {', '.join(map(str, shape))}]."
    )
  rows = []
  for start in range(0, len(images), batch_size):
    batch = scaling.to_signed(np.stack(images[start : start + batch_size]))
    count = len(batch)
    if count < batch_size and start:
      batch = np.concatenate([batch, np.zeros((batch_size - count, *shape), np.float32)])
    batch = np.broadcast_to(batch, (*batch.shape[:-1], 3))
    with jax.default_matmul_precision("highest"):  # the user's own extractors too: distances must not depend on the hardware
      rows.append(np.asarray(extractor(jnp.asarray(batch)), np.float32)[:count])
  features = np.concatenate(rows)
  if features.ndim != 2:
    raise ValueError(f"Extractor {extractor.name!r} gave {features.shape}, not one vector per image: pool over space.")
  check_finite(features, f"Features {extractor.name!r}")
  return features


def check_finite(x: np.ndarray, what: str) -> None:
  """Raises ValueError if rows of x [n, d] hold NaN or infinity; the message calls them `what`."""
  if not np.isfinite(x).all():
    rows = np.flatnonzero(~np.isfinite(x).all(1))
    raise ValueError(f"{what} of {len(rows)} image(s), first number {rows[0]}, are not finite: remove these images.")


def scattering(images: jax.Array) -> jax.Array:
  """Wavelet scattering energies, colour statistics and a 4 × 4 thumbnail: features that need no weights.

  First order: mean and deviation of |x * ψ| of the luminance over 4 octaves and 6 orientations; second
  order: mean of ||x * ψ| * ψ'| at coarser octaves, over relative orientation (Bruna and Mallat, 2013, eq.
  6, averaged over rotations), logarithms of both; mean, deviation and 8-bin histogram of three opponent
  colours.

  Args:
    images: [B, H, W, 3] in [-1, 1], sides at least 32.

  Returns:
    [B, 162] float32.
  """
  if min(images.shape[1:3]) < 32:
    raise ValueError(f"Scattering features need sides of at least 32 pixels, not {images.shape[1:3]}.")
  opponent = jnp.asarray(np.array([[1, 1, 1], [1.5, -1.5, 0], [0.75, 0.75, -1.5]], np.float32).T / 3)
  colours = jnp.einsum("bhwc,cd->bhwd", jnp.asarray(images, jnp.float32), opponent, precision="highest")
  moments = [colours.mean((1, 2)), colours.std((1, 2))]
  centres = jnp.linspace(-1, 1, 8)  # triangular bins: a histogram that changes continuously
  bins = [jnp.maximum(0, 1 - jnp.abs(colours - c) * 3.5).mean((1, 2)) for c in centres]
  rows, columns = (np.array_split(np.arange(n), 4) for n in images.shape[1:3])
  thumbnail = [colours[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((1, 2)) for r in rows for c in columns]

  x, envelopes, first, second = colours[..., :1], [], [], []
  for _ in range(4):
    response = _wavelets(x)[..., 0, :]  # [B, h, w, 6]
    first += [response.mean((1, 2)), response.std((1, 2))]
    for earlier in envelopes:
      energy = _wavelets(earlier).mean((1, 2))  # [B, earlier orientation, orientation]
      relative = [jnp.mean(jnp.stack([energy[:, i, (i + shift) % 6] for i in range(6)]), 0) for shift in range(6)]
      second.append(jnp.stack(relative, -1))
    envelopes = [_halve(e) for e in [*envelopes, response]]
    x = _halve(x)
  energies = jnp.log(1e-3 + jnp.concatenate(first + second, -1))
  return jnp.concatenate([*moments, *bins, *thumbnail, energies], -1)


def _wavelets(x: jax.Array) -> jax.Array:
  """|x * ψ| for 6 orientations: [B, h, w, c] -> [B, h, w, c, 6]; the mean of each filter is zero."""
  span = np.arange(-4, 5)
  y, z = np.meshgrid(span, span, indexing="ij")
  filters = []
  for i in range(6):
    along = z * math.cos(math.pi * i / 6) + y * math.sin(math.pi * i / 6)
    envelope = np.exp(-(y**2 + z**2) / (2 * 1.6**2))
    wave = np.exp(1j * 0.6 * math.pi * along)
    wave = envelope * (wave - (envelope * wave).sum() / envelope.sum())
    filters += [wave.real / envelope.sum(), wave.imag / envelope.sum()]
  kernel = jnp.asarray(np.stack(filters, -1)[:, :, None], jnp.float32)  # [9, 9, 1, 12]
  planes = einops.rearrange(x, "b h w c -> (b c) h w 1")
  planes = jnp.pad(planes, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
  waves = jax.lax.conv_general_dilated(
    planes, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
  )
  parts = einops.rearrange(waves, "(b c) h w (orientation part) -> b h w c orientation part", c=x.shape[-1], part=2)
  return jnp.sqrt(jnp.sum(jnp.square(parts), -1) + 1e-12)


def _halve(x: jax.Array) -> jax.Array:
  """Half the height and width, by averages over 2 × 2 pixels; an odd last row or column is dropped."""
  x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
  return einops.reduce(x, "b (h 2) (w 2) c -> b h w c", "mean")
