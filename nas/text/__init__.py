"""Text to token ids and back: `files.read(path)`, and `sentence_piece.train` for a new one."""
