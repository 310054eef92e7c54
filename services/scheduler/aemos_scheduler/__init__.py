"""The scheduler service is the clock: it hands rule chains to the rule workers when their schedules make them due."""
