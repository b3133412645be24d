"""What is kept, by database. `db.py` and `cache.py` are its front: nothing else imports from here."""
