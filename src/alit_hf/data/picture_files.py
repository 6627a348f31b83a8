"""Which files of a folder are pictures. Imports nothing: the command line asks before anything heavy is loaded."""

PICTURE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""What is taken for a picture in a folder. Pillow cannot read HEIF: better reported than left out in silence."""
