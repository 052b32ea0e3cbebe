"""The domain: preference pairs, presentations, judge prompts, the trace grammar and its parser."""
