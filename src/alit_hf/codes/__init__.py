"""Codes outside the model: `.alit` files, encoding and decoding pictures, choosing lengths, and figures."""
