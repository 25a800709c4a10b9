"""Calls with NumPy on the CPU: results, plans, batches and what methods() says."""

import json
import subprocess
import threading

import numpy
import pytest

import s2o

# Sparse at 1,024 tokens, too.
SPARSE = [("streaming_llm", {"window": 256}), ("minference", {"budget_scale": 0.1}),
          ("xattention", {"threshold": 0.6}), ("oracle_token", {"density": 0.1}),
          ("s2o", {"tau": 0.1, "segment_size": 256}), ("s2o_plus", {"tau": 0.1})]


def dense_by_numpy(q, k, v, scale):
    seqlen, group = q.shape[1], q.shape[0] // k.shape[0]
    k, v = (x.repeat(group, axis=0).astype(numpy.float64) for x in (k, v))
    logits = q.astype(numpy.float64) @ k.transpose(0, 2, 1) * scale
    logits[:, ~numpy.tri(seqlen, dtype=bool)] = -numpy.inf
    top = logits.max(axis=-1, keepdims=True)
    p = numpy.exp(logits - top)
    return p @ v / p.sum(-1, keepdims=True), (top + numpy.log(p.sum(-1, keepdims=True)))[..., 0]


def test_dense_is_softmax_attention(qkv):
    for scale in (None, 0.3):
        result = s2o.attention(*qkv, "dense", softmax_scale=scale, return_lse=True)
        out, lse = dense_by_numpy(*qkv, scale or 64**-0.5)
        numpy.testing.assert_allclose(result.out, out, atol=2e-5)
        numpy.testing.assert_allclose(result.lse, lse, atol=2e-5)
        assert result.work is None and result.out.dtype == numpy.float32


@pytest.mark.parametrize("method, params", SPARSE)
def test_plan_and_run_equal_attention(qkv, method, params):
    whole = s2o.attention(*qkv, method, return_lse=True, return_work=True, **params)
    work, = whole.work
    assert 0.0 < work.compute_density < 1.0
    assert 0.0 < work.pair_density < 1.0
    assert work.steps.dtype == numpy.int32 and work.steps.min() >= 1
    plan = s2o.plan(*qkv, method, **params)
    assert plan.bytes > 0 and plan.planner == work.planner
    assert plan.method == method and params.items() <= plan.params.items()
    again = s2o.run(plan, *qkv, return_lse=True, return_work=True)
    numpy.testing.assert_array_equal(whole.out, again.out)
    numpy.testing.assert_array_equal(whole.lse, again.lse)
    assert again.work[0].compute_density == work.compute_density


def test_batch_is_its_sequences(qkv):
    q, k, v = (numpy.stack([x, x[:, ::-1]]) for x in qkv)
    both = s2o.attention(q, k, v, tau=0.1, return_lse=True, return_work=True)
    assert both.lse.shape == q.shape[:-1] and len(both.work) == 2
    plan = s2o.plan(q, k, v, tau=0.1)
    numpy.testing.assert_array_equal(both.out, s2o.run(plan, q, k, v))
    for i in range(2):
        one = s2o.attention(q[i], k[i], v[i], tau=0.1)
        numpy.testing.assert_array_equal(both.out[i], one)


def test_parts_are_sequences(qkv):
    ends = [0, 300, 301, 1024]
    parts = s2o.attention(*qkv, "s2o", tau=0.1, cu_seqlens=ends, return_lse=True, return_work=True)
    assert len(parts.work) == 3
    for begin, end in zip(ends, ends[1:]):
        one = s2o.attention(*(x[:, begin:end] for x in qkv), "s2o", tau=0.1, return_lse=True,
                            contiguous=True)
        numpy.testing.assert_array_equal(parts.out[:, begin:end], one.out)
        numpy.testing.assert_array_equal(parts.lse[:, begin:end], one.lse)
    numpy.testing.assert_array_equal(
        parts.out, s2o.attention(*qkv, "s2o", tau=0.1, cu_seqlens=numpy.array(ends)))


def test_types_round_the_same_result(qkv):
    exact = s2o.attention(*qkv, "dense")
    half = [x.astype(numpy.float16) for x in qkv]
    assert s2o.attention(*half, "dense").dtype == numpy.float16
    wide = s2o.attention(*half, "dense", out_dtype="fp32")
    assert wide.dtype == numpy.float32
    numpy.testing.assert_array_equal(s2o.attention(*half, "dense"), wide.astype(numpy.float16))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    brain = [x.astype(ml_dtypes.bfloat16) for x in qkv]  # exact
    numpy.testing.assert_array_equal(s2o.attention(*brain, "dense"), exact.astype(ml_dtypes.bfloat16))
    numpy.testing.assert_array_equal(s2o.attention(*brain, "dense", out_dtype="fp32"), exact)


def test_output_goes_where_asked(qkv):
    out = numpy.zeros_like(qkv[0])
    assert s2o.attention(*qkv, "dense", out=out) is out
    numpy.testing.assert_array_equal(out, s2o.attention(*qkv, "dense"))


def test_threads_get_their_own_results(qkv):
    expected = {tau: s2o.attention(*qkv, tau=tau) for tau in (0.3, 0.1, 0.03)}
    found = {}

    def work(tau):
        found[tau] = s2o.attention(*qkv, tau=tau)

    threads = [threading.Thread(target=work, args=(tau,)) for tau in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tau, out in expected.items():
        numpy.testing.assert_array_equal(found[tau], out)


def test_methods_are_those_of_the_program(program):
    listed = subprocess.run([program, "list", "methods", "--format", "json"], check=True,
                            capture_output=True).stdout
    listed = json.loads(listed)
    listed = listed["methods"] if isinstance(listed, dict) else listed
    of_configs = {"compute", "smooth_k", "rotate_qk"}  # which the module refuses
    for method in listed:
        method["params"] = [spec for spec in method["params"] if spec["name"] not in of_configs]
    assert s2o.methods() == listed


def test_outputs_are_those_of_the_program(qkv, program, tmp_path):
    h5py = pytest.importorskip("h5py")
    numpy.savez(tmp_path / "dump.npz", q=qkv[0], k=qkv[1], v=qkv[2])
    config = {"inputs": [{"source": "dump", "path": "dump.npz"}], "dtype": "fp32", "save_outputs": True,
              "methods": [{"name": method, **params} for method, params in SPARSE]}
    (tmp_path / "run.json").write_text(json.dumps(config))
    subprocess.run([program, "eval", "--config", tmp_path / "run.json", "--device", "cpu", "--out",
                    tmp_path / "out", "-q"], check=True, capture_output=True)
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    with h5py.File(tmp_path / "out/results.h5") as results:
        for index, (row, (method, params)) in enumerate(zip(rows, SPARSE, strict=True)):
            found = s2o.attention(*qkv, method, return_work=True, **params)
            numpy.testing.assert_array_equal(found.out, results[f"rows/{index}/out"][()])
            assert found.work[0].compute_density == row["compute_density"]
            assert found.work[0].planner == row["planner"]


def test_what_is_here():
    assert {method["name"] for method in s2o.methods()} >= {"dense", "s2o", "s2o_plus"}
    tau = next(p for m in s2o.methods() if m["name"] == "s2o" for p in m["params"] if p["name"] == "tau")
    assert tau["type"] == "real" and tau["help"]
    assert ("cpu", True) in [device[:2] for device in s2o.devices()]
    assert s2o.kernels()[0][:2] == ("attention_ref", True)
    assert s2o.version().startswith("s2o ")
    s2o.clear_cache()
    assert s2o.cache_bytes() == 0


def test_tuned_heads_do_what_the_file_says(qkv, tmp_path):
    # Three query heads that share one KV head, as layer 1 of a model of two layers.
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({
        "kind": "s2o tuned settings", "schema_version": 1,
        "model": {"name": "m", "id": "0", "num_layers": 2, "num_q_heads": 3, "num_kv_heads": 1, "head_dim": 64},
        "context": {}, "target": {"loss": 0.01}, "objective": "time",
        "settings": [{"name": "dense"}, {"name": "s2o_plus", "tau": 0.1},
                     {"name": "streaming_llm", "window": 256}],
        "lengths": [{"seqlen": 1024, "layers": [[0, 0, 0], [1, 1, 2]]}]}))
    tuned = s2o.attention(*qkv, "tuned", path=str(file), layer=1, return_lse=True, return_work=True)
    q, k, v = qkv
    first = s2o.attention(q[:2], k, v, "s2o_plus", tau=0.1, return_lse=True, return_work=True)
    last = s2o.attention(q[2:], k, v, "streaming_llm", window=256, return_lse=True, return_work=True)
    numpy.testing.assert_array_equal(tuned.out, numpy.concatenate([first.out, last.out]))
    numpy.testing.assert_array_equal(tuned.lse, numpy.concatenate([first.lse, last.lse]))
    density = (2 * first.work[0].pair_density + last.work[0].pair_density) / 3
    assert tuned.work[0].planner == "mixed" and abs(tuned.work[0].pair_density - density) < 1e-12
    numpy.testing.assert_array_equal(s2o.attention(*qkv, "tuned", path=str(file), layer=0),
                                     s2o.attention(*qkv, "dense"))
    with pytest.raises(s2o.ConfigError, match="tuned.layer: not set"):
        s2o.attention(*qkv, "tuned", path=str(file))
    file.write_text(file.read_text().replace('{"name": "dense"}', '{"name": "dense", "compute": "fp8"}'))
    with pytest.raises(s2o.ConfigError, match="tuned.json: dense.compute: found .*no such key here"):
        s2o.attention(*qkv, "tuned", path=str(file), layer=0)
    bad = q.copy()
    bad[2, 7, 5] = numpy.nan
    with pytest.raises(s2o.InputError, match="q: found nan at head 2, token 7, dim 5"):
        s2o.attention(bad, k, v, "tuned", path=str(file), layer=1)
    with pytest.raises(s2o.InputError, match="q: found nan at sequence 1, head 2, token 7, dim 5"):
        s2o.attention(*(numpy.stack(pair) for pair in ((q, bad), (k, k), (v, v))), "dense")
    with pytest.raises(s2o.ConfigError, match="found layer 2"):
        s2o.attention(*qkv, "tuned", path=str(file), layer=2)
    with pytest.raises(s2o.UnsupportedError, match="plans are not kept"):
        s2o.plan(*qkv, "tuned", path=str(file), layer=1)
