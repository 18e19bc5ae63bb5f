"""The verbs of the command `hf-cyclprune`, one module for each kind."""
