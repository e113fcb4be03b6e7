"""Why direct alignment over-optimizes, where it can be computed exactly: the paper's Sec. 4, App. D and App. E."""
