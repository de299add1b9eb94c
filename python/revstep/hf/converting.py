"""Conversion of a transformers model in place, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..models.layers import decoder_layers, unwrapped
from ..options import StackOptions, takes_options
from ..schemes import Scheme
from ..specs import parse_scheme, parse_state
from ..state import FixedPoint, StateFormat
from . import settings
from .adapters import Adapter
from .auto import UNMEASURED, Wanted, choose_scheme, own_text, predicts_tokens
from .calibrate import as_batches, calibrate
from .forwards import plain
from .installing import conversions, install


@takes_options
def convert(
    model: nn.Module, scheme: Scheme | str | StackOptions = "auto", state: StateFormat | str | None = None, *,
    calibration: Any = None, tokenizer: Any = None, tolerance: float = 0.004, loss_tolerance: float = 0.005, bits: float | None = None,
    headroom: float = 8.0, on_nonfinite: str = "raise", adapter: str | Adapter | None = None,
    say: Callable[[str], None] | None = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """Run the decoder layers of a transformers model by a :class:`~revstep.ReversibleStack`: activation memory stops growing with depth.

    The model is changed in place and returned: same class, same parameters under the same names, same state_dict, same ``generate`` and
    ``save_pretrained``; only the decoder layers' ``forward`` is replaced, on these instances. peft adapters may come before or after.
    The default is measured on the model itself: a Blend with a c of its own in every layer, with the fewest bits whose next-token
    distribution stays within ``tolerance`` of the original's (SmolLM2-135M: 4.2 bits a layer for 0.004 nats, docs/hf.md). ``revert`` gives the plain model.

    Args:
        model: a transformers model with pre-norm layers, or a peft model around one: a decoder with any head,
            a model of images and text, an encoder of images.
        scheme: ``"auto"`` (default), a scheme, or a string such as ``"blend:c=0.0625"``. "auto" measures how sensitive every layer is, on 1,024
            tokens from all over ``calibration`` or of text that the model makes up itself, chooses c by layer, and says the table it chose from.
            A model that predicts no next token cannot be measured and runs as Blend(c=1/32). Or a ``StackOptions``, whose scheme is one of these (None: auto).
        tolerance: of "auto": the largest KL divergence from the original's next-token distribution, nats a token.
        loss_tolerance: of "auto": the largest relative rise of the loss; 0.005 is half a percent.
        bits: of "auto": the mean carry bits of a layer to choose for, instead of the fewest within the tolerances.
        state: a format, a string such as ``"fixed32:16"``, or None: the finest fixed-point format with ``headroom`` times the largest state
            seen on the calibration text (a named scheme without calibration: FixedPoint(), +-2048, and an overflow raises with the format to use).
        start: ``"repeat"``, ``"euler"``, or None: what the scheme recommends for pretrained weights. This and the next five are as in ``StackOptions``.
        readout: ``"last"``: what the model reads.
        keep: layers at the end that keep their graphs, or ``"auto"``.
        memory_budget: for ``keep="auto"``, bytes or a share of what is free.
        save_ops: operators whose outputs are kept; saved with the model where it is a word.
        checks: True, ``"all"`` or False.
        calibration: your text: token ids (B, T), a list of such or of batches (dicts for ``model(**batch)``), or strings with ``tokenizer``.
        on_nonfinite: of the chosen format; ``"propagate"`` for fp16 with a GradScaler.
        adapter: how increments are got from the layers; None chooses. ``"difference"`` subtracts (the last resort).
        say: gets each line of what was measured and chosen, for example ``print``; None: quiet.

    Raises:
        ConfigError: an option that cannot be used, a model that is converted already.
        UnsupportedError: a model this cannot serve, naming what is missing.
        StateOverflowError: the calibration text leaves the given format.

    Source: Blend as the dial between a residual network and Midpoint: docs/theory; Midpoint: Gal et al., arXiv 2512.02056.
    """
    if before := conversions(model):
        raise ConfigError(f"the model is converted already ({before[0]}): revert(model) first")
    batches = None if calibration is None else as_batches(calibration, tokenizer, unwrapped(model))
    say = say or (lambda line: None)
    how = StackOptions.of(scheme, state=state, **options)
    if how.readout != "last":
        raise ConfigError(f"readout is {how.readout!r}, expected 'last': a converted model reads the last state")
    scheme, state, start = how.scheme or "auto", how.state, how.start
    if isinstance(scheme, str) and scheme == "auto":
        wanted = Wanted(tolerance, loss_tolerance, bits)
        decoder_layers(model)  # a model that cannot be converted says so at once
        if predicts_tokens(unwrapped(model), batches):
            if batches is None:
                batches = as_batches(own_text(unwrapped(model), say), None, unwrapped(model))
            scheme, start = choose_scheme(model, batches, wanted, start, say, adapter)
        else:
            scheme = UNMEASURED
            say(f"{type(unwrapped(model)).__name__} predicts no next token that could be compared with the original's: it runs as {scheme}")
    elif bits is not None:
        raise ConfigError(f"bits is {bits!r}, and the scheme is {scheme!r}: bits go with scheme 'auto'")
    scheme = parse_scheme(scheme).make() if isinstance(scheme, str) else scheme
    if not isinstance(scheme, Scheme):
        raise ConfigError(f"scheme is {scheme!r}, expected a scheme such as revstep.Blend(c=0.25), its string, or 'auto'")
    fmt = parse_state(state).make(on_nonfinite=on_nonfinite) if isinstance(state, str) else state
    how = replace(how, scheme=scheme, state=fmt or FixedPoint(64, 24), start=start or scheme.recommended_start)
    made = install(model, how, adapter)
    try:
        if batches is not None:
            found = calibrate(model, made, batches, headroom, on_nonfinite, chosen=fmt)
            say(str(found))
            fmt = found.state
        made.stack.state = fmt or FixedPoint(on_nonfinite=on_nonfinite)
        settings.write(unwrapped(model), made)
        say(f"converted {type(unwrapped(model)).__name__}: {made}")
    except BaseException:  # also when interrupted: the model is the plain one again
        made.detach()
        settings.remove(unwrapped(model))
        raise
    return model


def revert(model: nn.Module) -> nn.Module:
    """The plain model again, in place: the layers' own forward, and no reversible settings in its config. Weights stay as trained.

    Layers that were added, copied or moved after ``convert`` get their own forward as well.

    Raises:
        ConfigError: the model is not converted.
    """
    found = conversions(model)
    if not found:
        raise ConfigError(f"this {type(model).__name__} is not converted: there is nothing to revert")
    modules = list(model.modules())
    inside = set(map(id, modules))
    for made in found:
        if id(made.loop) in inside:
            made.detach()  # also of layers that are in the model no more
    for module in modules:
        plain(module)
        if hasattr(module.__dict__.get("config"), settings.KEY):
            settings.remove(module)
    return model
