"""What the TPU compiler says of every stage's programs, on a machine without a TPU: see `__main__.py`."""
