"""The engine: hooks on a model, one file per stage, and what the stages share."""
