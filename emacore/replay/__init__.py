"""What the weights of a recorded run say afterwards: other averages of them, and where they lie."""
