"""A demonstration that needs no network and no arguments: all it uses is installed."""
