"""Requests and answers of Kafka's protocol that aiokafka leaves out: its clients and the embedded broker share them."""
