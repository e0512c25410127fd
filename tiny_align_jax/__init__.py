"""Tiny-Align in JAX: a frozen ASR encoder, a small trained projector, a frozen small LLM."""

__version__ = "0.1.0"
