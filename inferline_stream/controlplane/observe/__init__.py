"""What the controller sees of a running pipeline."""
