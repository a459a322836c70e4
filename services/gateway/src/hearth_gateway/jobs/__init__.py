"""Jobs: looking a call up, watching it, ending it, repeating it."""
