"""What a configuration would take, before anything is run: memory, time, judge calls."""
