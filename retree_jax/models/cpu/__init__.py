"""Forms of convolutions that are faster on CPUs; results agree with XLA's to rounding."""
