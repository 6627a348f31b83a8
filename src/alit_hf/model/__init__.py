"""The model, its image processor and what both are made of: what a push to the Hub copies, and nothing else.

These files import only each other, by `from .name import …`, and libraries.
"""
