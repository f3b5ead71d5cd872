"""Training from recipes: the main job of the command line."""
