"""How a plan is carried out: tasks, the store, the executor and the engines. Nothing here knows what a cell measures."""
