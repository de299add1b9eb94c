"""Text from a trained model: temperature, top-k and top-p sampling, one token at a time, the context cropped
to its end.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .._values import number, whole
from ..errors import ConfigError
from ._architectures import LanguageModel, make_model
from ._checkpoint import CheckpointError, load_checkpoint
from ._config import TrainConfig
from ._data import matching_tokenizer, read_header
from ._parallel import find_device
from ._sizes import refuse_beyond_memory
from ._tokenizer import Tokenizer

#: Below it, logits divided by a temperature overflow float32.
COLDEST = 1e-30


def load_model(
    folder: str | Path, *, scheme: str | None = None, device: str = "cpu"
) -> tuple[LanguageModel, Tokenizer, TrainConfig]:
    """Model (in eval mode), tokenizer and config of the run in ``folder``.

    ``scheme`` runs the weights with another trunk, e.g. "plain" to deploy a blend as the residual network it
    tracks.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one that cannot be put on ``device``.
        ConfigError: unknown scheme, unreadable tokenizer.
    """
    saved = load_checkpoint(folder, training=False)
    vocab = saved.config.get("vocab")
    whole("vocab", vocab, 2)
    config = TrainConfig.from_dict({name: value for name, value in saved.config.items() if name != "vocab"})
    data = Path(folder) / "data"
    tokenizer = matching_tokenizer(data, read_header(data))
    if tokenizer.vocab != vocab:
        raise ConfigError(
            f"the tokenizer in {data} has {tokenizer.vocab} ids, the weights in {folder} are for {vocab}:"
            " they are"
            " of two runs"
        )
    refuse_beyond_memory(config, False, vocab)
    options = {name: getattr(config, name) for name in ("state", "start", "readout")}
    model = make_model(config.shape(vocab), scheme or config.scheme, **options)
    try:
        model.load_state_dict(saved.weights)
        model.to(find_device(device))
    except ConfigError as error:
        raise CheckpointError(f"the weights in {folder} cannot be used: {error}") from error
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"the weights in {folder} cannot be used on {device}: {str(error).splitlines()[0]}"
        ) from error
    return model.eval(), tokenizer, config


def check_sampling(count: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Raises ConfigError for options of ``generate`` that nothing can be drawn by."""
    for name, value in (("count", count), ("top_k", top_k), ("seed", seed)):
        whole(name, value, 0)
    number("temperature", temperature, 0.0)
    if 0 < temperature < COLDEST:
        raise ConfigError(
            f"temperature is {temperature!r}; expected 0, which takes the likeliest token, or at least"
            f" {COLDEST}"
        )
    number("top_p", top_p, 0.0, 1.0, open_low=True)


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Sample ``count`` ids after ``tokens``.

    Args:
        model: in the mode in which it is given (``load_model`` gives it without dropout).
        tokens: (B, T) int64, T at least 1, any length: the model sees the last ``context`` of them.
        count: how many ids, 0 or more.
        temperature: divides the logits; 0 takes the likeliest id.
        top_k: keep the k likeliest (0: all).
        top_p: then keep the likeliest whose probabilities reach p (1: all).
        seed: of a generator of its own; the global one is not touched.
        stop: with B = 1, end before this id.

    Returns:
        (B, T + at most count) int64, the prompt included.

    Raises:
        ConfigError: an option out of range, or an empty prompt.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ConfigError(
            f"the prompt has shape {tuple(tokens.shape)}; expected (batch, time) with at least one token"
        )
    check_sampling(count, temperature, top_k, top_p, seed)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    for _ in range(count):
        logits = model(tokens[:, -model.config.context :])[:, -1].float()  # (B, V)
        chosen = _choose(logits, temperature, top_k, top_p, generator)  # (B, 1)
        if stop is not None and len(chosen) == 1 and chosen.item() == stop:
            break
        tokens = torch.cat((tokens, chosen), dim=1)
    return tokens


def _choose(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> Tensor:
    """(B, V) float32 -> (B, 1) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    ranked, ids = (logits / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[:, top_k:] = -torch.inf
    odds = ranked.softmax(dim=-1)
    odds[odds.cumsum(dim=-1) - odds >= top_p] = 0  # of those before it; the likeliest always stays
    return ids.gather(-1, torch.multinomial(odds, 1, generator=generator))


def generate_text(
    folder: str | Path,
    prompt: str = "",
    count: int = 200,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    scheme: str | None = None,
    device: str = "cpu",
) -> str:
    """Continue ``prompt`` (nothing: start a document) with the model of the run in ``folder``; returns prompt
    and continuation.

    Raises:
        CheckpointError: as ``load_model``.
        ConfigError: as ``load_model`` and ``generate``; a prompt that is not valid Unicode.
    """
    model, tokenizer, _ = load_model(folder, scheme=scheme, device=device)
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"the prompt is not valid text: {error}; pass it as UTF-8") from error
    ids = [tokenizer.end, *tokenizer.encode(prompt).tolist()]  # every document followed an end id in training
    tokens = torch.tensor([ids], dtype=torch.int64, device=device)
    made = generate(
        model, tokens, count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tokenizer.end
    )
    return tokenizer.decode(made[0].tolist())
