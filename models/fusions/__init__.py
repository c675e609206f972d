"""Fusions bring attention to a segmentation head; their controls measure what that is worth."""
