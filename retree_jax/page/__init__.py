"""The page of `retree-jax demo`: a server on this computer with the models behind a queue, and what a browser shows."""
