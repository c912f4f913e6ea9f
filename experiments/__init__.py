"""Experiments: benchmarks, validation, notebooks, launch scripts, and the whole chain."""
