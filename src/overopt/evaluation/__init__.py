"""Checkpoints in; completions, metrics and verdicts out."""
