"""What `vitas COMMAND` does: a file for each kind of command, with its options and its work.

What a command needs is imported inside its work: torch takes seconds, and a typing error should cost none.
"""
