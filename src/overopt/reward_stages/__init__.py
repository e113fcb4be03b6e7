"""Stages about reward models: how good they are, and what choosing samples by them gives."""
