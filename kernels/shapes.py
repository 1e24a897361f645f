"""The real shapes, named once: tests lower them for Hopper, the GPU check runs and sweeps them."""

import dataclasses

ADFA_LD_VOCABULARY = 342  # names of the i386 table that ADFA-LD's traces use, and UNK


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A language model's shape; V is ADFA-LD's.

    Attributes:
      layers, cells: L and H.
      vocabulary: V.
    """

    layers: int
    cells: int
    vocabulary: int = ADFA_LD_VOCABULARY

    def __str__(self) -> str:
        return f"{self.layers}x{self.cells}"


# Kim et al., section 3.2, and a smaller one.
MODELS = tuple(ModelShape(layers, cells) for layers, cells in ((1, 200), (1, 400), (2, 400), (1, 128)))
ODD = (ModelShape(1, 33, 70), ModelShape(2, 7, 5))  # nothing is a multiple of anything
LANES = (4096, 8448, 16_896)  # the last two give 132 multiprocessors 64 and 128 each
STEPS = 128
