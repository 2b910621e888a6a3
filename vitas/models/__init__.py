"""What runs: the supernet, single networks, their names and their files."""
