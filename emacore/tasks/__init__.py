"""What is trained: data, network, loss and metrics, a task each."""
