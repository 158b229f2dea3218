"""The text, the vocabulary and the network of the built-in demo model."""
