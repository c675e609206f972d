"""Networks, heads and losses. Plain keyword arguments in, tensors out; no Lightning, no hparams."""
