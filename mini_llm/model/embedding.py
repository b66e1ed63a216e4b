"""Token embedding: each id becomes a vector, and the same matrix turns the last vector back into scores.

First and last stop of the model. Tying the two: arXiv 1608.05859; at 50M parameters it saves a fifth of them.
Letters: B batch, T tokens, D width, V vocabulary.
"""

from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """A table of V rows of width D, drawn from N(0, 0.02) by `Transformer.init_weights`.

    PyTorch's own default, N(0, 1), would make the tied head's first loss 30 times too large.
    """

    def reset_parameters(self) -> None:
        """Start from zeros: to draw normal numbers for an empty model on the meta device, torch loads for a second."""
        nn.init.zeros_(self.weight)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Look up ids (B, T) and return their vectors (B, T, D)."""
        return super().forward(ids_BT)
