"""Checkpoint files: what they hold, how they are written, how they open without running anything."""
