"""The commands, one file each. `overpaint.cli` loads the file of a command when it is called."""
