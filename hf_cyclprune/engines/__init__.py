"""What training engines do to a weight: which part of it a process holds, and where zeros stay."""
