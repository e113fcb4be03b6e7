"""The embedded default: small models from scratch, and all that a study trains, samples and evaluates of them."""
