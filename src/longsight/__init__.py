"""Longsight: MiniMax-M3-style models with exact sparse attention on the hardware you have."""

__version__ = "0.1.0"
