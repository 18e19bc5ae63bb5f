"""A demonstration that needs neither a network nor arguments: its model and data are installed."""
