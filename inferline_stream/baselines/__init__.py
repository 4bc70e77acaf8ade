"""What other autoscalers would do, as pure policies: KEDA, HPA, Flink, Ray Serve, coarse-grained."""
