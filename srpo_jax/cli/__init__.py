"""The command `srpo`: its verbs, their options and help, and the demo."""
