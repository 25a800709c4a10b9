"""Attention by s2o in models of Hugging Face transformers (5.0 and newer).

    import s2o.transformers

    s2o.transformers.register(tau=0.01, dense_layers=[0, 1])
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="s2o")

s2o runs where the queries are a whole sequence: the prefill, and forward passes that evaluate a
text. Decoding, and going on from a cache, is the model's own attention (PyTorch's sdpa), over all
keys. Queries share KV heads as the model says; Q, K and V are copied where transformers' views are
not contiguous.
"""

import contextlib

from s2o import ConfigError, UnsupportedError, attention, methods
from s2o import _setting as _checked

__all__ = ["register", "record"]

_sdpa = None  # transformers' own, of decoding
_recorded = None  # the list of record(), if it is on
# What models pass that changes attention, and what it is where it changes nothing.
_NEUTRAL = {"softcap": (None,), "s_aux": (None,), "position_bias": (None,), "head_mask": (None,),
            "output_attentions": (None, False), "is_causal": (None, True)}


class _Layers:
    """Method and parameters of each layer of a model."""

    def __init__(self, method, params, dense_layers, layers):
        self.default = method, params
        self.special = {int(layer): ("dense", {}) for layer in dense_layers}
        for layer, setting in layers.items():
            setting = dict(setting)
            if "method" not in setting:
                raise ConfigError(f"layers[{layer!r}]: key 'method' is missing")
            self.special[int(layer)] = setting.pop("method"), setting
        for name, values in (self.default, *self.special.values()):
            _checked(name, values)  # errors come here, not in the first prefill

    def of(self, layer, num_layers):
        for named in self.special:
            if num_layers is not None and not 0 <= named < num_layers:
                raise ConfigError(f"layers: found layer {named}, this model has {num_layers}, counted from 0")
        return self.special.get(layer, self.default)


def _refuse(what):
    raise UnsupportedError(f"s2o: {what}")


def _check(module, query, mask, dropout, options):
    """Refuses what would change the result."""
    if mask is not None:
        _refuse("the prefill has an attention mask (padding, packed sequences or a sliding window), and "
                "only causal attention of whole sequences is supported; run prompts of one length "
                "together, without padding")
    if dropout:
        _refuse(f"dropout is {dropout}, expected 0; model.eval() turns it off")
    if query.requires_grad:
        import torch

        if torch.is_grad_enabled():
            _refuse("training: s2o has no backward pass; call the model under torch.no_grad()")
    for name, neutral in _NEUTRAL.items():
        if not any(options.get(name) is value for value in neutral):
            _refuse(f"{name} is {options[name]!r}, which this model's attention asks for and s2o does not do")
    if not getattr(module, "is_causal", True):
        _refuse(f"{type(module).__name__} is not causal, and s2o is")
    window = options.get("sliding_window")
    if window is not None and window < query.shape[2]:
        _refuse(f"a sliding window of {window} tokens on a prompt of {query.shape[2]}")


def _implementation(layers):
    """An attention function as transformers calls it."""

    def s2o_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
        # q [batch, heads, queries, head_dim]; k, v [batch, kv_heads, keys, head_dim].
        queries, keys = query.shape[2], key.shape[2]
        if queries > 1 and keys > queries and attention_mask is None:
            # An empty cache of a fixed size: what lies behind the queries is no key yet.
            key, value, keys = key[:, :, :queries], value[:, :, :queries], queries
        if queries == 1 or keys != queries:
            return _sdpa(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                         **options)
        _check(module, query, attention_mask, dropout, options)
        layer = getattr(module, "layer_idx", None)
        num_layers = getattr(getattr(module, "config", None), "num_hidden_layers", None)
        method, params = layers.of(layer, num_layers)
        if method == "tuned" and "layer" not in params:
            params = {**params, "layer": layer}
        result = attention(query, key, value, method, softmax_scale=scaling, contiguous=True,
                           return_work=_recorded is not None, **params)
        if _recorded is not None:
            _recorded.extend((layer, method, work) for work in result.work)
            result = result.out
        return result.transpose(1, 2).contiguous(), None

    import torch

    return torch.compiler.disable(s2o_attention)


@contextlib.contextmanager
def record():
    """Notes what attention did: a list that grows by (layer, method, s2o.Work) for every sequence of
    every prefill in the with block, in all threads. Each layer waits for the device."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def register(method="s2o_plus", *, name=None, dense_layers=(), layers=None, **params):
    """Makes attention implementations known to transformers: "s2o" and "s2o:<method>" for every
    method, with its defaults; then `name` as the arguments say.

    Args:
        method: of `s2o.methods()`.
        name: of the implementation to set: "s2o" by default; "s2o:mine", say, beside it.
        dense_layers: numbers of layers that attend densely, from 0.
        layers: {number: {"method": ..., parameters}} of layers that differ.
        **params: of the method, as in configs: tau=0.01.

    Returns:
        The name, for attn_implementation= or model.set_attn_implementation().

    Raises:
        ConfigError: as s2o.attention(); what a model asks for and s2o cannot do (masks, sliding
        windows, dropout, training) is an UnsupportedError when it is run.
    """
    global _sdpa
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def add(key, setting):
        AttentionInterface.register(key, _implementation(setting))
        AttentionMaskInterface.register(key, sdpa_mask)

    name = "s2o" if name is None else name
    if name != "s2o" and not name.startswith("s2o:"):
        raise ConfigError(f"name: found {name!r}, expected 's2o' or one that begins with 's2o:'")
    chosen = _Layers(method, params, dense_layers, layers or {})
    if _sdpa is None:
        _sdpa = sdpa_attention_forward
        add("s2o", _Layers("s2o_plus", {}, (), {}))
        for info in methods():
            add(f"s2o:{info['name']}", _Layers(info["name"], {}, (), {}))
    add(name, chosen)
    return name
