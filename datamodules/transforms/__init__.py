"""Augmentations. They work on arrays of 8 bits and draw from the torch generator only."""
