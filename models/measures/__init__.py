"""What is measured of features, attention and labels: tensors in, numbers out."""
