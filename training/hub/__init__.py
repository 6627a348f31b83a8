"""A run on the Hub: model cards, and pushes in the background."""
