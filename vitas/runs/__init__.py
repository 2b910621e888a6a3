"""A run: its folder, its stages, and what can be known before it starts."""
