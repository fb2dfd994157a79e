"""Blocks: functions on tensors that one family has too many of for its own file."""
