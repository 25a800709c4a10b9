"""Models of transformers with attention by s2o: random small ones, on a GPU where there is one."""

import pytest

import s2o

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import s2o.transformers  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOLERANCE = 0.02 if DEVICE == "cuda" else 1e-4


def make_model(kind="qwen2", implementation="sdpa", **options):
    s2o.transformers.register()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
        **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation,
                                                          dtype=DTYPE)
    return model.eval().to(DEVICE)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 320, (2, 700), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def logits(model, ids, implementation, **options):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits.float()


def close(a, b):
    return ((a - b).norm() / b.norm()).item() < TOLERANCE


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "qwen3"])
def test_dense_is_the_models_own_attention(kind, ids):
    options = {"sliding_window": None} if kind == "mistral" else {}
    model = make_model(kind, **options)
    assert close(logits(model, ids, "s2o:dense"), logits(model, ids, "sdpa"))


def test_settings_by_layer(model, ids):
    dense = logits(model, ids, "sdpa")
    sparse = {"sink": 64, "window": 64}
    assert s2o.transformers.register("streaming_llm", **sparse) == "s2o"
    everywhere = logits(model, ids, "s2o")
    assert not close(everywhere, dense)
    name = s2o.transformers.register("streaming_llm", name="s2o:mine", dense_layers=[0, 1, 2], **sparse)
    assert close(logits(model, ids, name), dense)
    assert torch.equal(logits(model, ids, "s2o"), everywhere)
    s2o.transformers.register("dense", layers={layer: {"method": "streaming_llm", **sparse}
                                               for layer in range(3)})
    assert torch.equal(logits(model, ids, "s2o"), everywhere)


def test_what_attention_did_is_recorded(model, ids):
    name = s2o.transformers.register("streaming_llm", name="s2o:mine", dense_layers=[1], sink=64, window=64)
    with s2o.transformers.record() as works:
        logits(model, ids, name)
    assert [(layer, method) for layer, method, _ in works] == [
        (0, "streaming_llm")] * 2 + [(1, "dense")] * 2 + [(2, "streaming_llm")] * 2
    assert works[2][2].compute_density == 1.0 > works[0][2].compute_density
    logits(model, ids, name)
    assert len(works) == 6


@pytest.mark.parametrize("implementation", ["s2o:dense", "s2o:s2o_plus", "s2o:xattention"])
def test_generation_after_a_prefill(model, ids, implementation):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model.set_attn_implementation("sdpa")
    expected = model.generate(ids, **options)
    model.set_attn_implementation(implementation)
    found = model.generate(ids, **options)
    assert found.shape == (2, 708)
    if implementation == "s2o:dense" and DEVICE == "cpu":
        assert torch.equal(found, expected)
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, found)


def test_refusals(model, ids):
    padded = torch.ones_like(ids)
    padded[0, :5] = 0
    with pytest.raises(s2o.UnsupportedError, match="the prefill has an attention mask"):
        logits(model, ids, "s2o", attention_mask=padded)
    assert close(logits(model, ids, "s2o:dense", attention_mask=torch.ones_like(ids)),
                 logits(model, ids, "sdpa"))
    model.set_attn_implementation("s2o")
    with pytest.raises(s2o.UnsupportedError, match="training: s2o has no backward pass"):
        model(ids, use_cache=False)
    dropping = make_model(attention_dropout=0.1).train()
    with pytest.raises(s2o.UnsupportedError, match="dropout is 0.1, expected 0"):
        logits(dropping, ids, "s2o")
    sliding = make_model("mistral", sliding_window=256)
    with pytest.raises(s2o.UnsupportedError, match="sliding window"):
        logits(sliding, ids, "s2o")


def test_layers_that_a_model_has_not_are_refused(model, ids):
    for layer in (3, -1):
        name = s2o.transformers.register("dense", name="s2o:mine", dense_layers=[layer])
        with pytest.raises(s2o.ConfigError, match=f"found layer {layer}, this model has 3, counted from 0"):
            logits(model, ids, name)


def test_wrong_settings_are_refused_when_registered():
    with pytest.raises(s2o.ConfigError, match="did you mean 'tau'"):
        s2o.transformers.register(tua=0.1)
    with pytest.raises(s2o.ConfigError, match="did you mean 's2o_plus'"):
        s2o.transformers.register("s2o_pluss")
    with pytest.raises(s2o.ConfigError, match=r"layers\[3\]: key 'method' is missing"):
        s2o.transformers.register(layers={3: {"tau": 0.1}})
    with pytest.raises(s2o.ConfigError, match="begins with 's2o:'"):
        s2o.transformers.register(name="flash")
