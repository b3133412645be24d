"""What only whoever runs the router needs."""
