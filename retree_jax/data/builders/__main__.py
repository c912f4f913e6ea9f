"""Builds a TFDS data set from a download:

python -m retree_jax.data.builders NAME ARCHIVE_OR_FOLDER [--data_dir DIR]
"""

import argparse
import sys


def main(arguments=None) -> int:
  """Returns the exit code: 0, or 1 with a one-sentence error message."""
  parser = argparse.ArgumentParser(prog="python -m retree_jax.data.builders", description=__doc__.splitlines()[0])
  parser.add_argument("name", help="chase_db1[/second], hrf, drive, stare[/second], eyepacs or eyeq[/usable]")
  parser.add_argument("downloaded", help="the archive, or a folder of files or archives")
  parser.add_argument("--data_dir", help="where TFDS sets are kept (default ~/tensorflow_datasets)")
  options = parser.parse_args(arguments)
  from retree_jax.data.builders import fundus  # seconds to import, which --help should not cost

  try:
    folder = fundus.prepare(options.name, options.downloaded, options.data_dir)
  except (ValueError, OSError) as error:
    print(error, file=sys.stderr)
    return 1
  suffix = f":{options.data_dir}" if options.data_dir else ""
  print(f"{folder} is ready: use it as --config.data.source=tfds:{options.name}{suffix}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
