"""What the tests start in processes of their own is no test, and holds no doctests."""

collect_ignore = ["job.py", "parts.py", "shadow.py"]
