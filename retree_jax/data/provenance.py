"""Generated pictures say that they are synthetic, and generated pictures are recognised where real ones are asked for.

A generated PNG holds an XMP packet with IPTC's DigitalSourceType `trainedAlgorithmicMedia`, which search engines and picture
editors read, and a text chunk `retree_jax` with JSON: software, version, seed and number. Both are the same whenever the same
pair is generated, and stand before the pixels, so that reading them costs no more than reading a header.
"""

import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

import retree_jax
from retree_jax.data import notices

SOFTWARE = f"retree_jax {retree_jax.__version__}"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
KEYWORD = "retree_jax"
_XMP = "XML:com.adobe.xmp"
_LOOKED_AT = 8  # files of a folder whose headers are read where no manifest says what they are
_PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="{SOFTWARE}"
    Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def text(seed: int | None = None, number: int | None = None, synthetic: bool = True) -> dict[str, str]:
  """The text chunks of one PNG of a generated pair, as `writing.png_bytes` takes them.

  Args:
    seed, number: of the pair; None for a picture that shows several.
    synthetic: whether a model made the picture; False for the trees of painted pairs, which a user gave.
  """
  facts = {"software": "retree_jax", "version": retree_jax.__version__, "synthetic": synthetic, "seed": seed, "number": number}
  chunk = {KEYWORD: json.dumps({key: value for key, value in facts.items() if value is not None})}
  return chunk | ({_XMP: _PACKET} if synthetic else {})


def of_pair(kind: str, row: Mapping) -> dict[str, str]:
  """`text` of one picture of a pair.

  Args:
    kind: "images", "masks", "fov" or "coverage".
    row: the pair's manifest line. Where its trees were given, the photograph alone is synthetic.
  """
  return text(row.get("seed"), row.get("index"), kind == "images" or row.get("trees") != "given")


def is_synthetic(file) -> bool:
  """Whether the header of a picture says that a generative model made it, whichever program wrote it.

  Args:
    file: path or open binary file. What cannot be read as a picture says nothing.
  """
  try:
    with Image.open(file) as picture:
      packets = [picture.info.get(key, b"") for key in (_XMP, "xmp")]  # of PNG files; of JPEG, TIFF and WebP files
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
    return False
  return any(
    SOURCE_TYPE.rpartition("/")[2] in (p.decode("utf-8", "replace") if isinstance(p, bytes) else str(p)) for p in packets
  )


def generated_parts(source) -> list:
  """The parts of a source that hold generated pairs, by their labels or by the headers of a few of their files.

  Args:
    source: from `sources.open_source`. Sources without files, such as phantoms and arrays, hold none.
  """
  if hasattr(source, "parts"):
    return [part for inner in source.parts for part in generated_parts(inner)]
  if not hasattr(source, "is_labelled_generated"):
    return []
  if source.is_labelled_generated():
    return [source]
  names = source.names if hasattr(source, "files") else []
  rows = np.unique(np.linspace(0, len(names) - 1, min(_LOOKED_AT, len(names))).astype(int)) if len(names) else []
  return [source] if any(is_synthetic(source.files(names[row])[0]) for row in rows) else []


def warn(source, used_as: str, way_out: str) -> list[str]:
  """Logs one warning for each part of a source that holds generated pictures.

  Args:
    source: from `sources.open_source`.
    used_as: what the pictures are used as, e.g. "given with --real as real eyes".
    way_out: what to do about it.

  Returns:
    The sentences, e.g. for a report.
  """
  sentences = []
  for part in generated_parts(source):
    name = str(getattr(part, "path", part.title))
    sentences.append(f"{part.title} holds generated pictures, which are {used_as}: {way_out}.")
    notices.once(name, "generated", f"{name} holds generated pictures, which are {used_as}: {way_out}.")
  return sentences
