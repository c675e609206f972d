"""Augmentations. They run on PIL images and draw from the torch generator only."""
