"""HTTP in: one file a surface."""
