"""Decisions of the executor, as pure functions over frozen values. Time is an argument."""
