"""What a study shows: peaks, falls, claims."""
