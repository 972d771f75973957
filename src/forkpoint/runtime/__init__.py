"""How an operation runs in the sync and in the async world."""
