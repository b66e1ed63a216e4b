"""Run keeping: what a run leaves on the disk and on the screen, and how it goes on."""
