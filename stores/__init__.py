"""What is kept, by database."""
