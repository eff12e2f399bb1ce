"""The command line; each command's work lies in its own module, imported when it runs."""
