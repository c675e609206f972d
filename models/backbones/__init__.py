"""Backbones: every one takes uint8 images and gives `Features`."""
