"""What several AEMOS services need: queue, leases, batching, errors, names."""
