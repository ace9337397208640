"""The commands, one file each. `overpaint.cli` imports the file of a command when the command is called."""
