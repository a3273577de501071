"""How tiny-vit, a timm VisionTransformer, came to be: `python -m vtc.models.tiny.vit.train`."""
