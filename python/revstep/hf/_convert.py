"""Conversion of a transformers model in place, and the way back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .._imports import require
from .._models.layers import decoder_layers, unwrapped
from .._options import StackKeywords, StackOptions, takes_options
from .._specs import parse_scheme, parse_state
from ..errors import ConfigError
from ..schemes import Scheme
from ..state import FixedPoint, StateFormat
from . import _settings
from ._auto import UNMEASURED, Wanted, choose_scheme, own_text, predicts_tokens
from ._calibrate import as_batches, calibrate
from ._forwards import plain
from ._install import conversions, install
from ._tokenwise import undeclare
from ._whole import ADAPTER, cause, load_whole, refuse_incomplete
from .adapters import Adapter

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_options
def convert(
    model: nn.Module,
    scheme: Scheme | str | StackOptions = "auto",
    state: StateFormat | str | None = None,
    *,
    calibration: Any = None,
    tokenizer: Any = None,
    tolerance: float = 0.004,
    loss_tolerance: float = 0.005,
    bits: float | None = None,
    headroom: float = 8.0,
    on_nonfinite: str = "raise",
    adapter: str | Adapter | None = None,
    say: Callable[[str], None] | None = None,
    **options: Unpack[StackKeywords],
) -> nn.Module:
    """Run the decoder layers of a transformers model by a :class:`~revstep.ReversibleStack`: activation
    memory stops growing with depth.

    The model is changed in place and returned: same class, same parameters under the same names, same
    state_dict, same ``generate`` and ``save_pretrained``; only the decoder layers' ``forward`` is replaced,
    on these instances. peft adapters may come before or after. The default is measured on the model itself: a
    Blend with a c of its own in every layer, with the fewest bits whose next-token distribution stays within
    ``tolerance`` of the original's (SmolLM2-135M: 4.2 bits a layer for 0.004 nats, docs/hf.md). ``revert``
    gives the plain model.

    Args:
        model: a transformers model with pre-norm layers, or a peft model around one: a decoder with any head,
            a model of images and text, an encoder of images, videos or sounds.
        scheme: ``"auto"`` (default), a scheme, or a string such as ``"blend:c=0.0625"``. "auto" measures how
            sensitive every layer is, on 1,024 tokens from all over ``calibration`` or of text that the model
            makes up itself, chooses c by layer, and says the table it chose from. A model that predicts no
            next token cannot be measured and runs as Blend(c=1/32). Or a ``StackOptions``, whose scheme is
            one of these (None: auto).
        tolerance: of "auto": the largest KL divergence from the original's next-token distribution, nats a
            token.
        loss_tolerance: of "auto": the largest relative rise of the loss; 0.005 is half a percent.
        bits: of "auto": the mean carry bits of a layer to choose for, instead of the fewest within the
            tolerances.
        state: a format, a string such as ``"fixed32:16"``, or None: the finest fixed-point format with
            ``headroom`` times the largest state seen on the calibration text (a named scheme without
            calibration: FixedPoint(), +-2048, and an overflow raises with the format to use).
        start: ``"repeat"``, ``"euler"``, or None: ``"euler"`` where "auto" chooses c by layer, otherwise what
            the scheme recommends for pretrained weights. This and the next six are as in ``StackOptions``.
        readout: ``"last"``: what the model reads.
        keep: layers at the end that keep their graphs, or ``"auto"``.
        memory_budget: for ``keep="auto"``, bytes or a share of what is free.
        save_ops: operators whose outputs are kept; saved with the model where it is a word.
        tile: tokens of a tile, by which MLPs and mixtures of experts are evaluated and differentiated.
        offload_carries: carries wait in host memory for backward.
        checks: True, ``"all"`` or False.
        calibration: your text: token ids (B, T), a list of such or of batches (dicts for ``model(**batch)``),
            or strings with ``tokenizer``.
        tokenizer: turns strings of ``calibration`` into token ids; None: they are ids already.
        headroom: of the chosen state format: how many times the largest state of the calibration text it
            holds.
        on_nonfinite: of the chosen format; ``"propagate"`` for fp16 with a GradScaler.
        adapter: how increments are got from the layers; None chooses. ``"difference"`` subtracts (the last
            resort).
        say: gets each line of what was measured and chosen, for example ``print``; None: quiet.

    Raises:
        ConfigError: an option that cannot be used, a model that is converted already.
        UnsupportedError: a model this cannot serve, naming what is missing.
        StateOverflowError: the calibration text leaves the given format.

    Source: Blend as the dial between a residual network and Midpoint: docs/theory; Midpoint: Gal et al.,
    arXiv 2512.02056.
    """
    if before := conversions(model):
        raise ConfigError(f"the model is converted already ({before[0]}): revert(model) first")
    batches = None if calibration is None else as_batches(calibration, tokenizer, unwrapped(model))
    say = say or (lambda line: None)
    how = StackOptions.of(scheme, state=state, **options)
    if how.readout != "last":
        raise ConfigError(
            f"readout is {how.readout!r}, expected 'last': a converted model reads the last state"
        )
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
            say(
                f"{type(unwrapped(model)).__name__} predicts no next token that could be compared with the"
                f" original's: it runs as {scheme}"
            )
    elif bits is not None:
        raise ConfigError(f"bits is {bits!r}, and the scheme is {scheme!r}: bits go with scheme 'auto'")
    scheme = parse_scheme(scheme).make() if isinstance(scheme, str) else scheme
    if not isinstance(scheme, Scheme):
        raise ConfigError(
            f"scheme is {scheme!r}, expected a scheme such as revstep.Blend(c=0.25), its string, or 'auto'"
        )
    fmt = parse_state(state).make(on_nonfinite=on_nonfinite) if isinstance(state, str) else state
    how = replace(
        how, scheme=scheme, state=fmt or FixedPoint(64, 24), start=start or scheme.recommended_start
    )
    made = install(model, how, adapter)
    try:
        if batches is not None:
            found = calibrate(model, made, batches, headroom, on_nonfinite, chosen=fmt)
            say(str(found))
            fmt = found.state
        made.stack.state = fmt or FixedPoint(on_nonfinite=on_nonfinite)
        _settings.write(model, made)
        say(f"converted {type(unwrapped(model)).__name__}: {made}")
    except BaseException:  # also when interrupted: the model is the plain one again
        made.detach()
        undeclare(made.tokenwise)
        _settings.remove(unwrapped(model))
        raise
    return model


def revert(model: nn.Module) -> nn.Module:
    """The plain model again, in place: the layers' own forward, and no reversible settings in its config.
    Weights stay as trained.

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
            undeclare(made.tokenwise)
    for module in modules:
        plain(module)
        if hasattr(module.__dict__.get("config"), _settings.KEY):
            _settings.remove(module)
    return model


# ---- ``save_pretrained`` is transformers' own; this is the way back to a converted model ----

#: Options of ``from_pretrained`` that say where a folder is: its config is read with them too.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

#: Files of a model's weights; those of adapters have other names.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def from_pretrained(
    path: str | os.PathLike[str], *, adapter: Adapter | None = None,
    base: str | os.PathLike[str] | None = None, model_class: type | None = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """A model saved by ``save_pretrained`` from a converted one, converted as it was.

    Its class is the one that config.json names under ``architectures``; the class's own ``from_pretrained``
    loads the same folder as the plain model. Of a folder of peft adapters (adapter_config.json) the base
    model is loaded with the adapters around it. No tensor is made up: one that is missing is an error.

    peft writes no config.json, so the reversible settings are the base folder's; where the base was converted
    in memory, ``model.config.save_pretrained(folder)`` puts them beside the adapters.

    Args:
        path: the folder, or a name on the hub.
        adapter: the one that the model was converted with, where it is not one of the package's (the folder
            holds only its name).
        base: folder of the base model of peft adapters, where it is not the one that adapter_config.json
            names.
        model_class: the class to load, where it is not one of transformers'.
        options: of the class's ``from_pretrained``. With adapters they go to the base model, but for
            ``is_trainable=True``, which goes on training the adapters.

    Raises:
        ConfigError: the folder holds a plain model, or one converted with an adapter that is not known; its
            class is not known; tensors are missing, unexpected or of another shape.
    """
    transformers = require("transformers", "loading a Hugging Face model", "hf")
    if (Path(path) / ADAPTER).is_file():
        return _with_adapters(transformers, path, base, adapter, model_class, options)
    if base is not None:
        found = f"{path} has no {ADAPTER}"
        raise ConfigError(f"{found}; expected a folder of peft adapters, or no base: leave base= out")
    config = _config(transformers, path, options)
    stored = _settings.read(config)
    model = load_whole(model_class or _class(transformers, config), path, **options)
    _settings.remove(model)
    return _converted(model, stored, adapter)


def _converted(model: nn.Module, stored: dict[str, Any], adapter: Adapter | None) -> nn.Module:
    return convert(model, **stored | ({} if adapter is None else {"adapter": adapter}), say=None)


def _config(transformers: Any, path: str | os.PathLike, options: dict[str, Any]) -> Any:
    where = {name: options[name] for name in (*_WHERE, "trust_remote_code") if name in options}
    return transformers.AutoConfig.from_pretrained(path, **where)


def _class(transformers: Any, config: Any) -> Any:
    """What the folder was saved from: it may have a head for classification, or read images and text."""
    names = getattr(config, "architectures", None) or ()
    found = [getattr(transformers, name, None) for name in names]
    base = transformers.PreTrainedModel
    models = [kind for kind in found if isinstance(kind, type) and issubclass(kind, base)]
    if models:
        return models[0]
    for auto, where in (getattr(config, "auto_map", None) or {}).items():  # code that lies in the folder
        if isinstance(where, str) and where.rpartition(".")[2] in names and hasattr(transformers, auto):
            return getattr(transformers, auto)
    if names:
        raise ConfigError(
            f"config.json names the class {names[0]}, which transformers does not have; expected one of its "
            f"own: pass the class itself, from_pretrained(..., model_class={names[0]})"
        )
    return transformers.AutoModelForCausalLM


def _with_adapters(
    transformers: Any, path: str | os.PathLike, base: Any, adapter: Adapter | None, model_class: type | None,
    options: dict[str, Any],
) -> nn.Module:  # fmt: skip
    """The base model of a folder of peft adapters, with the adapters around it, converted."""
    peft = require("peft", "loading adapters", "hf")
    both = sorted(file.name for pattern in _WEIGHTS for file in Path(path).glob(pattern))
    if both:
        found = f"{path} holds peft adapters ({ADAPTER}) and a model ({both[0]})"
        raise ConfigError(f"{found}; expected one of them: move the other into a folder of its own")
    tuned = peft.PeftConfig.from_pretrained(path)
    base = tuned.base_model_name_or_path if base is None else base
    if not base:
        raise ConfigError(f"{path}/{ADAPTER} names no base model; expected its folder: pass base=")
    trainable = options.pop("is_trainable", False)
    try:
        config = _config(transformers, base, options)
    except OSError as error:
        found = f"the base model of the adapters in {path} is {base}, which cannot be read ({cause(error)})"
        raise ConfigError(f"{found}; expected its folder: pass base=") from error
    beside = _config(transformers, path, {}) if (Path(path) / "config.json").is_file() else config
    source = beside if hasattr(beside, _settings.KEY) else config
    if not hasattr(source, _settings.KEY):
        raise ConfigError(
            f"neither {path}, a folder of peft adapters, nor its base model {base} has reversible settings, "
            "and peft does not save them: call model.config.save_pretrained(folder) beside "
            "model.save_pretrained(folder), or load the adapters with peft and call revstep.hf.convert"
        )
    stored = _settings.read(source)
    model = load_whole(model_class or _class(transformers, config), base, **options)
    _settings.remove(model)
    return _converted(_wrapped(peft, model, path, tuned, trainable), stored, adapter)


def _wrapped(peft: Any, model: nn.Module, path: str | os.PathLike, tuned: Any, trainable: bool) -> nn.Module:
    """The peft model of these adapters; refused unless the folder holds every tensor of them."""
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(tuned.task_type, peft.PeftModel)
    what = f"the {tuned.peft_type.value} adapters of a {type(model).__name__} as its {ADAPTER} describes them"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = kind.from_pretrained(model, path, "default", is_trainable=trainable)
        found = made.load_adapter(path, "default", is_trainable=trainable)  # again: this one tells
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} does not hold {what}: {str(error).strip()}") from error
    # peft knows which keys are shared and only seem to be missing, and reads prompts apart from the others.
    lacking = any("missing adapter keys" in str(warning.message) for warning in said)
    unexpected = [name for name in found.unexpected_keys if name != "prompt_embeddings"]
    refuse_incomplete(path, what, found.missing_keys if lacking else (), unexpected, {})
    return made
