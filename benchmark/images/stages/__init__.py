"""The stages. Each takes a task, the folders of its inputs, an empty folder to fill and the bench, and returns what its
manifest says besides; none knows of stores, grids or other tasks."""
