"""A Hugging Face Hub for the tests; a package, so that its modules have names of their own."""
