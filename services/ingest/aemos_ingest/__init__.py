"""The record: who may send, and what was sent."""
