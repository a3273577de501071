"""Pictures, videos and prompts: what goes into a processor."""
