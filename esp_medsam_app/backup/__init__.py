"""Copies of all that a server must not lose, and back again."""
