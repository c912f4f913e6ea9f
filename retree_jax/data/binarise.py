"""Makes the masks of a folder binary: NAME.png with 0 and 255, in place of files with other values.

python -m retree_jax.data.binarise EYES/masks --above 127               # JPEG, anti-aliased drawings, probabilities of 8 bits
python -m retree_jax.data.binarise EYES/masks --above 32767             # of 16 bits
python -m retree_jax.data.binarise EYES/masks --above 0                 # class labels
python -m retree_jax.data.binarise EYES/fov --above 127 --invert        # black on white

The old files are kept in EYES/masks/originals. Files that hold two values and can be used stay as they are, so that the command
may be run again with other settings for other files.
"""

import argparse
import pathlib
import sys

import numpy as np

from retree_jax.data import folders, image_io, masks, writing

ORIGINALS = "originals"


def binarise(folder, above: float, invert: bool = False) -> int:
  """Rewrites the masks of one folder; files that hold two values and are read as they are meant stay.

  Args:
    folder: of masks; in a folder called "fov", of fields of view.
    above: a pixel is drawn where its value in the file is greater.
    invert: a pixel is drawn where its value is not greater.

  Returns:
    The number of files rewritten.

  Raises:
    ValueError: an unreadable file, or a mask that would be empty or nearly full; then nothing is changed.
  """
  folder = pathlib.Path(folder).expanduser()
  originals = folder / ORIGINALS
  # Originals without a file in the folder are those of a run that was killed.
  files = (folders.find_pictures(originals) if originals.is_dir() else {}) | folders.find_pictures(folder)
  if not files:
    raise ValueError(f"There are no pictures in {folder}: give the folder of the masks, e.g. EYES/masks.")
  read = masks.read_fov if folder.resolve().name == "fov" else masks.read_tree

  def converted(path):
    values = masks.drawing(image_io.read(path, str(path)))
    if path.parent == folder and _stays(path, values, read):
      return None
    drawn = (values > above) != invert
    png = writing.png_bytes(drawn * np.uint8(255))
    try:
      read(png, str(path))
    except ValueError:
      held = np.unique(values)
      held = ", ".join(f"{v:g}" for v in held) if len(held) <= 8 else f"{held[0]:g} to {held[-1]:g}"
      raise ValueError(
        f"no file was changed: --above {above:g}{' --invert' if invert else ''} would draw {100 * drawn.mean():.0f} % of "
        f"{path}, which holds the values {held}; give another --above, or {'leave out' if invert else 'add'} --invert"
      ) from None
    return png

  # Everything is tried before anything is changed, and one file at a time is in memory.
  chosen = [path for path in files.values() if converted(path) is not None]
  for path in chosen:
    png = converted(path)
    if path.parent == folder:
      originals.mkdir(exist_ok=True)
      path.rename(originals / path.name)  # first, so that a run that was killed in between finds it there and goes on
    writing.write_bytes(folder / f"{path.stem}.png", png)
  return len(chosen)


def _stays(path: pathlib.Path, values: np.ndarray, read) -> bool:
  if len(np.unique(values)) > 2:
    return False
  try:
    read(path, str(path))
  except ValueError:
    return False
  return True


def main(arguments=None) -> int:
  """Returns the exit code: 0, or 2 after one sentence about what is wrong."""
  parser = argparse.ArgumentParser(
    prog="python -m retree_jax.data.binarise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", help="folder of masks, e.g. EYES/masks")
  parser.add_argument("--above", type=float, required=True, help="draw the pixels whose value in the file is greater")
  parser.add_argument("--invert", action="store_true", help="draw the other pixels instead")
  options = parser.parse_args(arguments)
  try:
    count = binarise(options.folder, options.above, options.invert)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  originals = pathlib.Path(options.folder) / ORIGINALS
  if count:
    print(f"{count} masks in {options.folder} are binary now; the old files are in {originals}")
  else:
    print(f"All masks in {options.folder} were binary before; to convert them anew, move the files of {originals} back first")
  return 0


if __name__ == "__main__":
  sys.exit(main())
