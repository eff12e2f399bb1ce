"""Stillmotion: Stable Video Diffusion on your own GPUs, behind fal.ai's HTTP contract."""

__version__ = "0.1.0"
