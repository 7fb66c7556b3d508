"""The article's regression."""
