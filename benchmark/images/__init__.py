"""Cells of text-to-image models: their planner, stages, workbench and contact sheets."""
