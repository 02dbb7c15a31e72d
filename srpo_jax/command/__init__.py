"""What a command line of srpo says: verbs, options, help, parsed. What verbs do is in cli."""
