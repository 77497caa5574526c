"""Device and cluster profiles: one YAML per device, each number with its source."""
