"""tiny-next: a LLaVA-NeXT continued from tiny-llava, for pictures of 672 px whose small things need all four crops."""
