"""Weight averaging in deep learning: the mathematics, an EMA class to use, and experiments to learn from."""
