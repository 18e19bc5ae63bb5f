"""What a run or a model leaves on disk."""
