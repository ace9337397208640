"""The definition of a grid: composed configurations, checked cells, concepts, prompts and components by name."""
