"""What several processes of one service share, and how one asks the others. Everybody else knows the protocol alone
(`protocol.py`)."""
