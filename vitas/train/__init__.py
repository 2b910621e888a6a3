"""The one training loop, its checkpoints and its state on any backend."""
