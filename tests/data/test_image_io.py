"""Every format, depth and kind of damage that public sets hold; and the visible disc of drawn and real photographs."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from retree_jax.data import field_of_view, image_io
from retree_jax.inference import superres


def encoded(array, form, **options):
  data = io.BytesIO()
  (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(data, form, **options)
  return data.getvalue()


RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "BMP", "GIF"])
def test_lossless_formats_give_the_pixels(form):
  np.testing.assert_array_equal(image_io.decode(encoded(GREY, form), "it"), GREY)
  if form != "GIF":
    np.testing.assert_array_equal(image_io.decode(encoded(COLOUR, form), "it"), COLOUR)


def test_files_and_bytes_are_read_alike(tmp_path):
  (tmp_path / "a.png").write_bytes(encoded(COLOUR, "PNG"))
  np.testing.assert_array_equal(image_io.decode(tmp_path / "a.png", "a"), COLOUR)
  assert image_io.picture_size(tmp_path / "a.png") == (6, 9)


def test_depths_and_palettes():
  wide = np.array([[0, 257, 65535]], np.uint16)
  np.testing.assert_array_equal(image_io.decode(encoded(wide, "PNG"), "16 bits"), [[0, 1, 255]])
  # 8-bit values in a 16-bit file are taken as they are.
  np.testing.assert_array_equal(image_io.decode(encoded(np.array([[0, 1, 255]], np.uint16), "PNG"), "wide"), [[0, 1, 255]])
  bits = np.array([[True, False]])
  np.testing.assert_array_equal(image_io.decode(encoded(bits, "PNG"), "1 bit"), [[255, 0]])
  alpha = Image.fromarray(np.dstack([COLOUR, np.full((6, 9), 7, np.uint8)]))
  np.testing.assert_array_equal(image_io.decode(encoded(alpha, "PNG"), "alpha"), COLOUR)
  # White all over, with the drawing in the alpha channel, as drawing programs export it.
  drawn = np.zeros((6, 9), np.uint8)
  drawn[2:4] = 255
  for bands in ("LA", "RGBA"):
    white = Image.merge(bands, [Image.new("L", (9, 6), 255)] * (len(bands) - 1) + [Image.fromarray(drawn)])
    np.testing.assert_array_equal(image_io.as_mask(image_io.decode(encoded(white, "PNG"), bands), bands)[..., 0], drawn)
  palette = Image.fromarray(drawn // 255).convert("P")
  palette.putpalette([255] * 6)
  data = io.BytesIO()
  palette.save(data, "PNG", transparency=0)
  np.testing.assert_array_equal(image_io.decode(data.getvalue(), "palette")[..., 0], drawn)
  red = Image.fromarray(np.tile(np.uint8([255, 0, 0]), (3, 3, 1))).convert("P")
  assert image_io.decode(encoded(red, "GIF"), "palette").shape == (3, 3, 3)


def test_a_damaged_file_is_named(tmp_path):
  whole = encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), "PNG")
  jpeg = encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
  for data in (whole[: len(whole) // 2], whole[:20], jpeg[: len(jpeg) // 2], b"", b"<html>Not found</html>"):
    with pytest.raises(ValueError, match=r"Cannot read eye_7 \(.*\): replace the damaged file or remove it") as found:
      image_io.decode(data, "eye_7")
    assert "\n" not in str(found.value)
    (tmp_path / "a.png").write_bytes(data[:10])
    with pytest.raises(ValueError, match="no picture or it is damaged"):
      image_io.picture_size(tmp_path / "a.png")
  with pytest.raises(ValueError, match="gone is gone"):
    image_io.decode(tmp_path / "gone.png", "gone")


def test_a_bomb_is_refused_before_its_pixels_are_made(tmp_path):
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  for side in (30_000, 9_000):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="bomb has more than 64 million pixels"):
      image_io.decode(bomb, "bomb")


def test_masks_of_any_scale_and_slight_jpeg_noise_are_binary():
  truth = np.zeros((64, 64), bool)
  truth[20:40, 10:50] = True
  for low_high in ((0, 1), (0, 255), (0, 128)):
    mask = np.where(truth, low_high[1], low_high[0]).astype(np.uint8)
    np.testing.assert_array_equal(image_io.as_mask(mask, "it")[..., 0], truth * 255)
    np.testing.assert_array_equal(image_io.as_mask(np.repeat(mask[..., None], 3, -1), "it")[..., 0], truth * 255)
  noisy = np.where(truth, 252, 4).astype(np.uint8)
  noisy[0, :40] = 100  # 1 % of the pixels
  assert (image_io.as_mask(noisy, "it")[..., 0] == truth * 255)[1:].all()
  assert not image_io.as_mask(np.zeros((4, 4), np.uint8), "black").any()


def test_what_is_no_mask_is_refused():
  with pytest.raises(ValueError, match=r"gradient is no binary mask \(9\d % of its pixels .*binarise it first"):
    image_io.as_mask(np.tile(np.arange(256, dtype=np.uint8), (8, 1)), "gradient")
  classes = np.repeat(np.uint8([0, 85, 170, 255]), 16).reshape(8, 8)
  with pytest.raises(ValueError, match="50 % of its pixels"):
    image_io.as_mask(classes, "classes")


def test_black_vessels_on_white_are_refused():
  drawn = np.zeros((20, 20), np.uint8)
  drawn[:, 8:12] = 255
  np.testing.assert_array_equal(image_io.as_tree(drawn, "it")[..., 0], drawn)
  with pytest.raises(ValueError, match="negative says that 80 % of its pixels are vessel: draw vessels white on black"):
    image_io.as_tree(255 - drawn, "negative")


def disc_photograph(height, width, radius, centre, surround=3):
  y, x = np.mgrid[:height, :width]
  distance = np.hypot(y - centre[0], x - centre[1]) / radius
  image = np.where(distance[..., None] < 1, (1.1 - 0.7 * distance**2)[..., None] * np.array([170, 80, 30]), surround)
  image += np.random.default_rng(0).normal(0, 2, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8), distance < 1


@pytest.mark.parametrize(
  "height, width, radius, centre", [(240, 240, 110, (120, 120)), (200, 300, 140, (100, 150)), (300, 260, 90, (140, 120))]
)
def test_the_disc_is_found(height, width, radius, centre):
  image, truth = disc_photograph(height, width, radius, centre)
  image[100:110, 60:100] //= 20  # a dark lesion
  image[5:12, 5:25] = 255  # text in the corner
  found = field_of_view.find_fov(image)[..., 0] > 0
  assert (found & truth).sum() / (found | truth).sum() > 0.97


def test_a_photograph_without_a_surround_is_all_visible():
  image = RNG.integers(90, 140, (80, 80, 3)).astype(np.uint8)
  assert (field_of_view.find_fov(image) == 255).all()
  assert (field_of_view.find_fov(np.zeros((80, 80, 3), np.uint8)) == 255).all()


@pytest.mark.parametrize("name, count", [("CHASE_DB1", 3), ("HRF", 3)])
def test_real_discs(real_eyes, name, count):
  for path in sorted((real_eyes / name / "fov").iterdir())[:: 15 // count]:
    photograph = next((real_eyes / name / "images").glob(f"{path.stem}.*"))
    found = field_of_view.find_fov(image_io.decode(photograph, "it"))[..., 0] > 0
    truth = image_io.as_mask(image_io.decode(path, "it"), "it")[..., 0] > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.96, photograph


def _disc(radius=58.0, centre=(63.5, 63.5), size=128):
  rows, columns = np.mgrid[:size, :size]
  return np.hypot(rows - centre[0], columns - centre[1]) <= radius


def _overlap(a, b):
  return (a & b).sum() / (a | b).sum()


def test_a_dented_disc_becomes_a_disc_again():
  true = _disc()
  dented = true.copy()
  dented[:30, 80:] = False
  dented[95:, 40:60] = False
  dented[60:64, 30:34] = False
  assert _overlap(dented, true) < 0.93
  assert _overlap(field_of_view.as_disc(dented)[0] >= 128, true) > 0.98


def test_the_coverage_of_a_disc_adds_up_to_its_area_and_stays_smooth_when_enlarged():
  coverage = field_of_view.disc_coverage((128, 128), (63.5, 63.5), 58.0)
  assert coverage.sum() / 255 == pytest.approx(np.pi * 58.0**2, rel=1e-3)
  # Pixel i of 128 spans pixels 4i to 4i + 3 of 512: its middle is at 4i + 1.5.
  true = _disc(radius=4 * 58.0, centre=(4 * 63.5 + 1.5,) * 2, size=512)

  def wrong(disc):
    return np.mean((np.asarray(superres.enlarged_fov(disc[None, ..., None], 4))[0, ..., 0] > 0) != true)

  assert wrong(coverage) < 0.4 * wrong((coverage >= 128) * np.uint8(255))


def test_straight_cuts_and_the_frame_stay():
  cut = _disc(radius=63.0)
  cut[:15] = cut[-15:] = False
  np.testing.assert_array_less(0.98, _overlap(field_of_view.as_disc(cut)[0] >= 128, cut))
  assert not field_of_view.as_disc(cut)[0][:13].any()
  beyond = _disc(radius=75.0)  # the frame cuts it on all four sides
  assert _overlap(field_of_view.as_disc(beyond)[0] >= 128, beyond) > 0.98


@pytest.mark.parametrize("degrees", [0, 7, -14, 90, 101])
def test_tilted_cuts_with_ragged_edges_become_straight_again(degrees):
  rows, columns = np.mgrid[:128, :128] - 63.5
  along = rows * np.cos(np.deg2rad(degrees)) + columns * np.sin(np.deg2rad(degrees))
  disc = np.hypot(rows, columns)
  true = (disc <= 62.0) & (along < 41.3) & (along > -46.8)
  # Ragged: the rim runs up to 3 pixels outside or inside, smoothly, as a network draws it.
  wave = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(128, 128)), 4)
  wave *= 3 / np.abs(wave).max()
  drawn = (disc + wave <= 62.0) & (along + wave < 41.3) & (along - wave > -46.8)
  found, tilt = field_of_view.as_disc(drawn)
  assert abs(tilt - (degrees - 90 * (degrees > 45))) <= 2
  assert _overlap(found >= 128, true) > max(0.98, _overlap(drawn, true))
  for side, place in ((1, 41.3), (-1, 46.8)):
    edge = (found > 0) & (found < 255) & (disc < 60.0) & (side * along > 0)
    assert edge.sum() > 20 and np.abs(side * along[edge] - place).max() < 2
  # Turned back, the cuts run along the frame.
  upright = field_of_view.turned(np.uint8(255) * true[..., None], -(degrees - 90 * (degrees > 45)))[..., 0] >= 128
  straight = (
    true
    if degrees in (0, 90)
    else (disc <= 62.0) & ((rows < 41.3) & (rows > -46.8) if degrees < 45 else (columns < 41.3) & (columns > -46.8))
  )
  assert _overlap(upright, straight) > 0.985


def test_what_is_no_disc_keeps_its_hull_or_is_nothing():
  triangle = np.tril(np.ones((64, 64), bool))
  assert _overlap(field_of_view.as_disc(triangle)[0] >= 128, triangle) > 0.95
  specks = np.zeros((64, 64), bool)
  specks[::7, ::5] = True
  assert not field_of_view.as_disc(specks)[0].any()
