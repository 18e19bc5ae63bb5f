"""Facts counted in the weights and over the cycles of a run."""
