"""The transformers side: arguments, learning rate, callback and Trainer."""
