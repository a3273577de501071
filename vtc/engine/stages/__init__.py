"""The stages, one file each; `vtc.engine.stage` says what a stage is."""
