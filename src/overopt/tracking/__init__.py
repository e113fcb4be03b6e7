"""Runs in MLflow: start, resume, read back."""
