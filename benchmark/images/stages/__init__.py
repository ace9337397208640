"""The stages. Each takes a task, the folders of its inputs, an empty output folder and the workbench, and returns additional
entries for the manifest. A stage knows nothing about stores, grids or other tasks."""
