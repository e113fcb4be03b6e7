"""Curves, what else they could have been, and the laws fitted to them."""
