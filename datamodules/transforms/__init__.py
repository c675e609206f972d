"""Augmentations of 8-bit arrays. Their random numbers come from torch's generator only."""
