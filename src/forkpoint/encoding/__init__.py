"""Values to chunks, and back."""
