"""The theory as commands: compute, keep as tables, draw, track."""
