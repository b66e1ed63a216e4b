"""Many processes train one model: how it is spread over them, from outside the model."""
