"""One run of the article's experiment: its settings, data, network and training."""
