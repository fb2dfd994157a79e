"""The command line: strings become objects, one journey is called, its result is printed."""
