"""Threads in parts, as they are archived, and the file of lines that has them."""
