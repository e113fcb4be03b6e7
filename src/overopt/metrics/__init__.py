"""Estimators, each with its torchmetrics class."""
