"""What a backend must do, and what all backends share."""
