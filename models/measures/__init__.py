"""Measures of features, attention and segmentations: tensors in, numbers out."""
