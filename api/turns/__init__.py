"""A turn: what is asked, who answers, and what is done besides."""
