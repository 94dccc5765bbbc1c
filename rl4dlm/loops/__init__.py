"""The order of things: training, fine-tuning, evaluation."""
