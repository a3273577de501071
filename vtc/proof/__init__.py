"""Proof that a wrapped model is right, on the model at hand: `vtc.check`."""
