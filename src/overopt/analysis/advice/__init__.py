"""What to ship and what to try next."""
