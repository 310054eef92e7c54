"""The AEMOS SDK and the `aemos` command."""
