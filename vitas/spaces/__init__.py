"""What can be built, and what it costs."""
