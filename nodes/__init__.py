"""What the user sees: one class for each node."""
