"""What a run shows on the Hub: model cards, and pushes in the background."""
