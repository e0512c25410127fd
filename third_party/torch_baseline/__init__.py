"""PyTorch baseline: an independent implementation on `transformers` models, the thing we are compared with.

Nothing in `tiny_align_jax` imports it. It reads the same config files, canonical weights and feature cache.
"""
