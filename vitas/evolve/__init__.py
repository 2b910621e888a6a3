"""The search: its evolution, its scoring, and its journal."""
