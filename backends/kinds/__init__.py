"""What there is to know of each kind of model server."""
