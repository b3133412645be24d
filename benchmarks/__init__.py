"""What the router costs, and how well it chooses: nothing of the service."""
