"""Pretraining and continued training of M3-shaped models with sparse attention."""
