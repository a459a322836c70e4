"""What a machine needs for Hearth, what of it is missing, and the one command that mends each."""
