"""HTTP out: the endpoints, what they serve, and the clients that speak to them."""
