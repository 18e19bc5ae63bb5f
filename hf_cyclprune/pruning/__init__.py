"""The method itself: schedules, criteria, patterns and the pruner; needs torch and nothing else."""
