"""What is asked: composed configurations, checked cells, concepts, prompts and components by name."""
