"""Every format, depth and kind of damage that public sets hold; and the visible disc of drawn and real photographs."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from retree_jax.data import field_of_view, image_io, masks, notices
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
    found = image_io.decode(encoded(white, "PNG"), bands)
    np.testing.assert_array_equal(found, drawn if bands == "LA" else np.dstack([drawn] * 3))
  palette = Image.fromarray(drawn // 255).convert("P")
  palette.putpalette([255] * 6)
  data = io.BytesIO()
  palette.save(data, "PNG", transparency=0)
  np.testing.assert_array_equal(image_io.decode(data.getvalue(), "palette"), drawn)
  red = Image.fromarray(np.tile(np.uint8([255, 0, 0]), (3, 3, 1))).convert("P")
  assert image_io.decode(encoded(red, "GIF"), "palette").shape == (3, 3, 3)


def png16(values):
  """A 16-bit PNG of uint16 [H, W] (grey), [H, W, 2] (with opacity), [H, W, 3] or [H, W, 4]; Pillow writes no such colours."""

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  values = values if values.ndim == 3 else values[..., None]
  height, width, channels = values.shape
  header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, **options):
  data = io.BytesIO()
  options = {"photometric": "rgb"} | options if values.ndim == 3 else options
  tifffile.imwrite(data, values, **options)
  return data.getvalue()


@pytest.fixture
def said(monkeypatch):
  """The sentences that are logged, each once per source."""
  found = []
  monkeypatch.setattr(notices, "_said", set())
  monkeypatch.setattr(notices.logging, "warning", lambda form, *values: found.append(form % values))
  return found


COLOUR16 = RNG.integers(0, 65536, (40, 48, 3)).astype(np.uint16)
COLOUR16[0, 0] = 65535
FORMS_16 = {
  "png": png16,
  "tiff": tiff,
  "big-endian tiff": lambda values: tiff(values, byteorder=">"),
  "tiled tiff": lambda values: tiff(values, tile=(16, 16)),
  "compressed tiff": lambda values: tiff(values, compression="zlib"),
  "predicted tiff": lambda values: tiff(values, compression="zlib", predictor=True, byteorder=">"),
}


@pytest.mark.parametrize("form", FORMS_16)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_files_are_scaled_by_their_own_range(form, grey, bits, said):
  values = COLOUR16[..., 0] if grey else COLOUR16
  truth = values >> (16 - bits)  # as a camera of so many bits stores it
  picture = FORMS_16[form](truth)
  np.testing.assert_array_equal(image_io.read(picture, "it").values, truth)
  exact = truth * (255 / (2**bits - 1))
  for name in ("it", "another"):
    # 16-bit colours keep their high byte.
    assert np.abs(image_io.decode(picture, name, "set").astype(float) - exact).max() <= (0.5 if bits < 16 or grey else 1.0)
  assert len(said) == (bits < 16) and all(f"it holds {bits}-bit values in a file of more bits" in text for text in said)


def test_16_bit_colours_with_opacity_and_in_rare_forms():
  drawn = np.full(COLOUR16.shape[:2], 65535, np.uint16)
  drawn[:9] = 0
  for values, alpha in ((COLOUR16 >> 8, drawn >> 8), (COLOUR16, drawn)):
    found = image_io.decode(png16(np.dstack([values, alpha])), "it")
    np.testing.assert_array_equal(found, np.where(drawn[..., None] > 0, COLOUR16 >> 8, 0))
  with pytest.raises(ValueError, match="grey stores 16-bit colours in a way that cannot be read: save it as an 8-bit PNG"):
    image_io.decode(png16(np.dstack([COLOUR16[..., 0] >> 8, drawn])), "grey")
  header = b"P6\n48 40\n65535\n"
  np.testing.assert_allclose(image_io.decode(header + COLOUR16.astype(">u2").tobytes(), "ppm"), COLOUR16 / 257, atol=0.5)
  with pytest.raises(ValueError, match="ppm stores 16-bit colours in a way that cannot be read: save it as an 8-bit PNG"):
    image_io.decode(header + (COLOUR16 >> 8).astype(">u2").tobytes(), "ppm")
  planes = np.ascontiguousarray(np.moveaxis(COLOUR16, -1, 0))
  with pytest.raises(ValueError, match="planes stores 16-bit colours in a way that cannot be read: save it as an 8-bit PNG"):
    image_io.decode(tiff(planes, planarconfig="separate"), "planes")


@pytest.mark.parametrize("greatest, scale", [(1, 255), (255, 1), (65535, 1 / 257), (4095, 255 / 4095)])
def test_floats(greatest, scale, said):
  values = np.linspace(0, greatest, 54, dtype=np.float32).reshape(6, 9)
  values[0, 0] = np.nan
  found = image_io.decode(encoded(values, "TIFF"), "it")
  assert np.abs(found - np.nan_to_num(values) * scale).max() <= 0.5
  assert bool(said) == (greatest in (1, 4095))


@pytest.mark.parametrize("values", [np.float32([[-3, 9]]), np.float32([[0, 1e6]]), np.int32([[0, 70000]]), np.int32([[-1, 5]])])
def test_a_range_that_is_unclear_is_refused(values):
  with pytest.raises(
    ValueError, match=r"^it holds values from \S+ to \S+, of which the range is unclear: save it with 8 or 16 bits"
  ):
    image_io.decode(encoded(values, "TIFF"), "it")


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("form, deep", [("JPEG", False), ("PNG", False), ("PNG", True), ("TIFF", False), ("TIFF", True)])
def test_the_exif_orientation_is_obeyed(tmp_path, tag, form, deep, said):
  """The stored picture is turned so that the tag turns it back; its size is known from the header."""
  y, x = np.mgrid[:40, :64]
  seen = np.where(deep, 200, 1) * (3 * y + 2 * x)
  seen = seen.astype(np.uint16 if deep else np.uint8)
  back = {5: 5, 6: 8, 7: 7, 8: 6}.get(tag, tag)
  stored = Image.fromarray(seen)
  stored = stored if tag == 1 else stored.transpose(image_io._UPRIGHT[back])
  exif = Image.Exif()
  exif[274] = tag
  path = tmp_path / f"a.{form.lower()}"
  stored.save(path, form, exif=exif, **({"quality": 100} if form == "JPEG" else {}))
  assert image_io.picture_size(path) == (40, 64)
  found = image_io.read(path, "it").values
  assert found.shape == (40, 64) and np.abs(found.astype(int) - seen).max() <= (2 if form == "JPEG" else 0)
  assert len(said) == (tag != 1) and all("it is turned upright, as its EXIF orientation says" in text for text in said)


def test_a_damaged_exif_block_turns_nothing(tmp_path):
  for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"):
    (tmp_path / "a.jpg").write_bytes(encoded(COLOUR, "JPEG", exif=exif))
    assert image_io.picture_size(tmp_path / "a.jpg") == (6, 9)
    assert image_io.decode(tmp_path / "a.jpg", "it").shape == COLOUR.shape


def test_the_largest_page_of_a_tiff(tmp_path):
  """Scanners put a thumbnail first."""
  large = RNG.integers(0, 256, (30, 40, 3), np.uint8)
  pages = [Image.fromarray(array) for array in (COLOUR, large, COLOUR)]
  pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
  assert image_io.picture_size(tmp_path / "a.tif") == (30, 40)
  np.testing.assert_array_equal(image_io.decode(tmp_path / "a.tif", "it"), large)
  deep = io.BytesIO()
  with tifffile.TiffWriter(deep) as file:
    file.write(COLOUR16[:4, :4], photometric="rgb")
    file.write(COLOUR16 >> 8, photometric="rgb")
  np.testing.assert_array_equal(image_io.read(deep.getvalue(), "it").values, COLOUR16 >> 8)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
  (tmp_path / "a.png").write_bytes(encoded(COLOUR, "PNG"))

  def refuse(*_, **__):
    raise PermissionError(13, "Permission denied", "a.png")

  monkeypatch.setattr(image_io, "open", refuse, raising=False)
  for function in (image_io.picture_size, lambda path: image_io.decode(path, str(path))):
    with pytest.raises(ValueError, match=r"a.png cannot be opened: you have no permission to read it; allow it \(chmod u\+r\)"):
      function(tmp_path / "a.png")


def test_which_files_any_reader_shows_alike():
  exif = Image.Exif()
  exif[274] = 3
  plain = {encoded(COLOUR, "PNG"): True, encoded(COLOUR, "JPEG"): True}
  other = (encoded(GREY, "JPEG"), encoded(COLOUR, "TIFF"), encoded(COLOUR, "JPEG", exif=exif), png16(COLOUR16))
  alpha = encoded(np.dstack([COLOUR, GREY]), "PNG")
  for data, expected in {**plain, **dict.fromkeys((*other, alpha), False)}.items():
    assert image_io.is_plain(data) is expected


def test_a_damaged_file_is_named(tmp_path):
  whole = encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), "PNG")
  jpeg = encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
  for data in (whole[: len(whole) // 2], whole[:20], jpeg[: len(jpeg) // 2], b"", b"<html>Not found</html>"):
    with pytest.raises(ValueError, match=r"Cannot read eye_7 \(.*\): (replace the damaged file|replace it)") as found:
      image_io.decode(data, "eye_7")
    assert "\n" not in str(found.value)
    (tmp_path / "a.png").write_bytes(data[:10])
    with pytest.raises(ValueError, match=r"Cannot read .*a.png \(.*\): replace"):
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
    truth = masks.read_fov(path, "it")[..., 0] > 0
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
