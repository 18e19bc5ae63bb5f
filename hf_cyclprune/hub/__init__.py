"""What a pruned model's page on the Hub holds, and how it gets there."""
