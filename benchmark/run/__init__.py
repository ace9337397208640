"""Who makes it: tasks, the plan, the store, the executor and the engines. Nothing here knows what a cell is about."""
