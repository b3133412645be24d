"""Servers of MCP, asked with its official client, which is loaded when the first of them is."""
