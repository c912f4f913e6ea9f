"""Trained networks in use: samplers, super-resolution, segmentation, the tree filter, and data sets made with them."""
