"""Tensors of modules: which go together, what of them is averaged, where they lie, and how they move."""
