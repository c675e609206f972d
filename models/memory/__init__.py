"""Exact batches in small memory."""
