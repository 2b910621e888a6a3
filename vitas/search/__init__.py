"""The search, its journal and its scoring."""
