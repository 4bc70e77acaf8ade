"""What the controller keeps in Kafka, and its words."""
