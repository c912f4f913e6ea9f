"""What a data set is, whatever it is called: fingerprints of names and contents that survive a move to another folder."""

import hashlib
import pathlib
from collections.abc import Iterable

_BLOCK = 4096  # bytes read at either end of a file
_UNCOMPRESSED = {".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"}  # formats that may hold pixels as they are
_MAX_READ = 4000  # files of a source that are opened; of the others, the size alone is looked at


def of_source(source) -> str:
  """Fingerprint of a source: 16 hexadecimal digits.

  Of files, name, size and the first and last 4 KiB count: compressed pictures that differ anywhere differ in one of these. Of
  formats that may be uncompressed, all bytes count. The folder that holds them does not. Phantoms and TFDS examples count by
  their names.

  Args:
    source: from `sources.open_source`.
  """
  digest = hashlib.sha256()
  _add(digest, source)
  return digest.hexdigest()[:16]


def of_path(path) -> str:
  """Fingerprint of one file, or of all files below a folder; "" where there is none."""
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    return ""
  files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
  digest = hashlib.sha256()
  _add_files(digest, files, path)
  return digest.hexdigest()[:16]


def _add(digest, source) -> None:
  if hasattr(source, "parts"):
    for part, weight in zip(source.parts, source.weights, strict=True):
      digest.update(f"part {weight}\n".encode())
      _add(digest, part)
    return
  digest.update("\n".join(source.names).encode(errors="surrogateescape"))
  if hasattr(source, "files"):
    _add_files(digest, [path for name in source.names for path in source.files(name)], source.path)


def _add_files(digest, paths: Iterable[pathlib.Path], root: pathlib.Path) -> None:
  for number, path in enumerate(paths):
    size = path.stat().st_size
    name = path.relative_to(root) if path.is_relative_to(root) and path != root else path.name
    digest.update(f"\n{name} {size}\n".encode(errors="surrogateescape"))
    if number < _MAX_READ:
      with path.open("rb") as file:
        digest.update(file.read(_BLOCK))
        if path.suffix.lower() in _UNCOMPRESSED:
          while block := file.read(2**20):
            digest.update(block)
        elif size > _BLOCK:
          file.seek(max(_BLOCK, size - _BLOCK))
          digest.update(file.read(_BLOCK))
