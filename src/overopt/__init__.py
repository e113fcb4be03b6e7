"""Over-optimization of reward models in direct alignment: train, sweep, measure, fit, advise."""

import os

# Read when the libraries are imported: nothing here phones home unless the user has said so.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
