"""HTTP in: the key, bodies, replies, and the server protocol under them."""
