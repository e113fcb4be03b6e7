"""Sweeps: what the scripts in ``sweeps/`` share. Tasks, workers that share them, and what becomes of them."""
