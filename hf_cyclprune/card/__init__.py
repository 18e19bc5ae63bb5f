"""The model card: README.md of a pruned model."""
