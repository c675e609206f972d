"""What brings attention to a segmentation head, and the controls that say what it is worth."""
