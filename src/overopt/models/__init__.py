"""Policies and reward models: tensors in, tensors out."""
