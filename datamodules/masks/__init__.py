"""Masks of segmentations: how they are read, what their pixels mean, and a look at all of them."""
