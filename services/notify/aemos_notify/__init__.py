"""The herald: tells browsers what changed, and keeps the ledger of what was told."""
