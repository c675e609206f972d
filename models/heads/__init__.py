"""Heads on a backbone: projectors and decoders of segmentation."""
