"""Decisions: pure, with the time as an argument."""
