"""What operators see of the service: metrics and traces. Telemetry fails no request and no run."""
