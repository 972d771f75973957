"""What is drawn for people."""
