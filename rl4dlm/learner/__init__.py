"""One rank's work, without Ray: updates, supervised steps, the value model, learning rates."""
