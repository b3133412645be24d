"""A real model, the router in front of it, and OpenAI's SDK as the client: what `make demo` shows."""
