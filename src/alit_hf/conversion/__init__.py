"""Checkpoints of others: published ALIT models, and VQGANs as base tokenizers. One file per layout."""

from .loading import load_original


__all__ = ["load_original"]
