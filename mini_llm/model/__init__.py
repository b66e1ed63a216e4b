"""The model: embedding, RMSNorm, RoPE, attention, MLP, blocks, KV cache, and what they cost."""
