"""Losses: pure functions, float32 or better inside."""
