"""LightningModules: an objective, a model, an optimiser."""
