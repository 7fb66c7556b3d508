"""Training a network and its averages: the settings, the loop, the stack of seeds, and their histories."""
