"""Judges of two responses to one prompt."""
