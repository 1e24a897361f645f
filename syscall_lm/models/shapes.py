"""All kinds of models: a member's name says which kind it is, and its shape.

1x200                   a language model (Kim et al.): LAYERSxCELLS
encoder-decoder-10x64   an encoder-decoder (Soni et al.): of windows of LENGTHxCELLS
autoencoder-10x64       an autoencoder (Soni et al.), likewise
"""

from types import ModuleType

from syscall_lm.errors import SyscallLMError
from syscall_lm.models import autoencoder, encoder_decoder, language_model, lstm
from syscall_lm.types import Array, Params

WINDOW_MODELS: dict[str, ModuleType] = {module.NAME: module for module in (encoder_decoder, autoencoder)}

WindowShape = encoder_decoder.Shape | autoencoder.Shape
Shape = lstm.Shape | WindowShape


def parse(text: str, vocabulary_size: int) -> Shape:
    """Reads a member's shape.

    Raises:
      SyscallLMError: the text says none.
    """
    model, _, size = text.rpartition("-")
    if model and model not in WINDOW_MODELS:
        known = " or ".join(f"{name}-LENGTHxCELLS" for name in WINDOW_MODELS)
        raise SyscallLMError(f"{text!r} is no member; a member is LAYERSxCELLS, like 1x200, or {known}")
    if not model:
        return lstm.Shape.parse(text, vocabulary_size)
    length, _, cells = size.partition("x")
    if length.isdecimal() and cells.isdecimal() and 0 < int(length) <= 2**10 and 0 < int(cells) <= 2**14:
        return window_shape(model, vocabulary_size, int(length), int(cells))
    raise SyscallLMError(f"{text!r} is no member; an {model} is {model}-LENGTHxCELLS, like {model}-10x64")


def window_shape(model: str, vocabulary_size: int, length: int, cells: int = 64) -> WindowShape:
    """The shape of a model of `WINDOW_MODELS` by name.

    Raises:
      SyscallLMError: no such model.
    """
    if model in WINDOW_MODELS:
        return WINDOW_MODELS[model].Shape(vocabulary_size, length, cells)
    raise SyscallLMError(f"no window model is called {model!r}; there are {', '.join(WINDOW_MODELS)}")


def module_of(shape: Shape) -> ModuleType:
    """The module with a shape's `initialise`; of a window model also `logits`, `surprisal`, `begin` and `advance`."""
    if isinstance(shape, autoencoder.Shape):
        return autoencoder
    return encoder_decoder if isinstance(shape, encoder_decoder.Shape) else language_model


def initialise(key: Array, shape: Shape) -> Params:
    """Fresh parameters of one model."""
    return module_of(shape).initialise(key, shape)
