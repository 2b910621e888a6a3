"""What a run was, as a page and as pictures."""
