"""Every field of a config, its default, and what it may be."""
