"""Fine-tuning on GLUE: tasks, data, metrics and the run behind `hf-cyclprune glue`."""
