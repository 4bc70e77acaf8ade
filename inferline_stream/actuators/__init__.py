"""Make replicas appear and vanish."""
