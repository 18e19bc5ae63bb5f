"""Tests of the model card; a package, so that they can share their examples."""
