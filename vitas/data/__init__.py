"""From images to batches."""
