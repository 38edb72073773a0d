"""The commands of the command line, one file for each stretch of a user's way."""
