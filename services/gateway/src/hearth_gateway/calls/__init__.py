"""Calls: admission, bodies, custody, answers."""
