"""The live page at `/`: its files, who may see it, and what it shows."""
