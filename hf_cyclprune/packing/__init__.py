"""The packed format: a folder with the same model in less space, bit for bit."""
