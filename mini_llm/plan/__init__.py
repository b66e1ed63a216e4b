"""Before a run: what it takes in memory, time and money, and what to change when it does not fit."""
