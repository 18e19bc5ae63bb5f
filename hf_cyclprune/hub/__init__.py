"""The page of a pruned model on the Hub: what it holds, and how it is pushed."""
