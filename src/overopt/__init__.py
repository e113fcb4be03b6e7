"""Over-optimization of reward models in direct alignment: train, sweep, measure, fit, advise."""
