"""Pictures of runs, for a model card or a README."""
