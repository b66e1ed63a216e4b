"""Training: batches, loss, optimizer, schedule, the loop, and exact resumption."""
