"""Request-level serving: from a stream of requests to latencies and throughput."""
