"""The command lines: exit codes, what each mode does, settings for CPUs."""
