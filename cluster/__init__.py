"""What several processes of one service share."""
