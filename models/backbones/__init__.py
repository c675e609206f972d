"""Backbones: all take uint8 images and return `Features`."""
