"""One file an area: each has `cases(world, dice)`, and to join the campaign it only has to lie here."""
