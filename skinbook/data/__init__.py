"""From files on a disk to one tidy table and one array of pixels."""
