"""LiteRT files: integer codes, sparse constants and branches within a flatbuffer."""
