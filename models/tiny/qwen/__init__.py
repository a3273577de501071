"""tiny-qwen: the small Qwen2.5-VL that ships with the package, its world of pictures and clips, and its training."""
