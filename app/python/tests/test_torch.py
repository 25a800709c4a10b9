"""Tensors of PyTorch: the results of NumPy on the CPU; on a GPU its streams, devices and what needs
one."""

import json
import subprocess
import threading

import numpy
import pytest

import s2o

torch = pytest.importorskip("torch")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU = {"method": "s2o_plus", "tau": 0.1}


@pytest.fixture
def tensors(qkv):
    return tuple(torch.from_numpy(x) for x in qkv)


@pytest.fixture
def on_gpu(tensors):
    return tuple(x.bfloat16().cuda() for x in tensors)


def long_input(seqlen=8192, heads=(8, 2, 2), head_dim=128, dtype=torch.bfloat16, device="cuda"):
    made = torch.Generator(device).manual_seed(3)
    return tuple(torch.randn(n, seqlen, head_dim, generator=made, dtype=dtype, device=device) for n in heads)


def test_equals_numpy(qkv, tensors):
    expected = s2o.attention(*qkv, tau=0.1, return_lse=True, return_work=True)
    found = s2o.attention(*tensors, tau=0.1, return_lse=True, return_work=True)
    assert torch.equal(found.out, torch.from_numpy(expected.out))
    assert torch.equal(found.lse, torch.from_numpy(expected.lse))
    assert torch.equal(found.work[0].steps, torch.from_numpy(expected.work[0].steps.copy()))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = s2o.attention(*(x.bfloat16() for x in tensors), tau=0.1)
    same = s2o.attention(*(x.astype(ml_dtypes.bfloat16) for x in qkv), tau=0.1)
    assert half.dtype == torch.bfloat16
    numpy.testing.assert_array_equal(half.view(torch.int16).numpy(), same.view(numpy.int16))


def test_older_torch_is_described_by_its_attributes(tensors, monkeypatch):
    from s2o import _core, _frameworks

    expected = s2o.attention(*tensors, tau=0.1)
    framework = _frameworks.of("q", tensors[0])
    assert framework.describes_itself == hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    monkeypatch.setattr(framework, "describes_itself", False)
    assert torch.equal(s2o.attention(*tensors, tau=0.1), expected)
    if torch.cuda.is_available():
        on_gpu = [x.bfloat16().cuda() for x in tensors]
        found = s2o.attention(*on_gpu, **ON_GPU)
        monkeypatch.undo()
        assert torch.equal(s2o.attention(*on_gpu, **ON_GPU), found)
    assert not _core.has_exchange_api(numpy.ndarray)


def test_parts_are_sequences(tensors):
    ends = torch.tensor([0, 100, 1024], dtype=torch.int32)
    parts = s2o.attention(*tensors, "dense", cu_seqlens=ends)
    assert torch.equal(parts[:, :100], s2o.attention(*(x[:, :100] for x in tensors), "dense",
                                                     contiguous=True))


def test_refusals(tensors):
    q, k, v = tensors
    with pytest.raises(s2o.UnsupportedError, match="q: requires a gradient"):
        s2o.attention(q.clone().requires_grad_(), k, v)
    with torch.no_grad():
        s2o.attention(q.clone().requires_grad_(), k, v)
    with pytest.raises(s2o.InputError, match="q: is on meta, expected cpu or cuda"):
        s2o.attention(q.to("meta"), k, v)
    with pytest.raises(s2o.InputError, match="q: layout is torch.sparse_coo"):
        s2o.attention(q.to_sparse(), k, v)
    with pytest.raises(s2o.InputError, match="q: dtype is torch.float64, expected fp32, bf16 or fp16"):
        s2o.attention(q.double(), k, v)
    with pytest.raises(s2o.InputError, match="k: found numpy.ndarray, expected torch.Tensor"):
        s2o.attention(q, k.numpy(), v)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning", "ignore:.*FakeTensor:UserWarning")
def test_tensors_that_are_more_than_their_memory(tensors):
    q, k, v = tensors
    with pytest.raises(s2o.InputError, match="q: is negated when read"):
        s2o.attention(torch._neg_view(q), k, v)
    with pytest.raises(s2o.InputError, match="q: is nested"):
        s2o.attention(torch.nested.nested_tensor([q[0], q[1]]), k, v)
    with pytest.raises(s2o.InputError, match="q: its library says: .* expected an array with values"):
        torch.vmap(lambda x: s2o.attention(x, k, v))(q[None])
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake_tensor.FakeTensorMode():
        fake = [torch.empty(n, 64, 64) for n in (2, 1, 1)]
    with pytest.raises(s2o.InputError, match="q: "):
        s2o.attention(*fake)

    class Named(torch.Tensor):
        pass

    found = s2o.attention(*(x.as_subclass(Named) for x in tensors))
    assert torch.equal(found.as_subclass(torch.Tensor), s2o.attention(*tensors))


@needs_gpu
@pytest.mark.parametrize("method", [method["name"] for method in s2o.methods()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_agrees_with_cpu(tensors, method, dtype):
    host = [x.to(dtype) for x in tensors]
    expected = s2o.attention(*host, method, out_dtype="fp32", return_lse=True, return_work=True)
    found = s2o.attention(*(x.cuda() for x in host), method, out_dtype="fp32", return_lse=True,
                          return_work=True, check=True)
    assert found.out.device.type == "cuda"
    error = (found.out.cpu() - expected.out).norm() / expected.out.norm()
    assert error < 0.02, f"relative L2 {error}"
    assert found.work[0].compute_density == pytest.approx(expected.work[0].compute_density, rel=0.02)


@needs_gpu
def test_gpu_outputs_are_those_of_the_program(program, tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays = long_input(4096)
    numpy.savez(tmp_path / "dump.npz", **{name: x.float().cpu().numpy() for name, x in zip("qkv", arrays)})
    settings = [("dense", {}), ("xattention", {"threshold": 0.8}), ("s2o_plus", {"tau": 0.05}),
                ("flash_prefill", {}), ("s2o", {"tau": 0.05})]
    config = {"inputs": [{"source": "dump", "path": "dump.npz"}], "dtype": "bf16", "save_outputs": True,
              "methods": [{"name": method, **params} for method, params in settings],
              "timing": {"warmup": 0, "repeats": 1}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    subprocess.run([program, "eval", "--config", tmp_path / "run.json", "--device", "cuda", "--out",
                    tmp_path / "out", "-q"], check=True, capture_output=True)
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    with h5py.File(tmp_path / "out/results.h5") as results:
        for index, (row, (method, params)) in enumerate(zip(rows, settings, strict=True)):
            found = s2o.attention(*arrays, method, out_dtype="fp32", return_work=True, **params)
            expected = torch.from_numpy(results[f"rows/{index}/out"][()])
            assert torch.equal(found.out.cpu(), expected), method
            assert torch.equal(s2o.attention(*arrays, method, **params).cpu(), expected.bfloat16()), method
            assert found.work[0].compute_density == row["compute_density"]
            assert found.work[0].planner == row["planner"]


@needs_gpu
def test_gpu_plan_and_run_equal_attention():
    arrays = long_input()
    for method, params in (("dense", {}), ("xattention", {}), ("s2o_plus", {"tau": 0.1})):
        plan = s2o.plan(*arrays, method, **params)
        whole = s2o.attention(*arrays, method, return_lse=True, **params)
        for _ in range(2):
            again = s2o.run(plan, *arrays, return_lse=True)
            assert torch.equal(again.out, whole.out) and torch.equal(again.lse, whole.lse)
        assert plan.bytes > 0


@needs_gpu
def test_gpu_batch_and_parts_are_sequences():
    arrays = long_input(2048)
    batch = [torch.stack([x, x.flip(1)]) for x in arrays]
    both = s2o.attention(*batch, **ON_GPU)
    assert torch.equal(both[0], s2o.attention(*arrays, **ON_GPU))
    assert torch.equal(both[1], s2o.attention(*(x.flip(1) for x in arrays), **ON_GPU))
    parts = s2o.attention(*arrays, cu_seqlens=[0, 1000, 2048], **ON_GPU)
    assert torch.equal(parts[:, 1000:], s2o.attention(*(x[:, 1000:] for x in arrays), contiguous=True,
                                                      **ON_GPU))
    with pytest.raises(s2o.InputError, match="expected host integers"):
        s2o.attention(*arrays, cu_seqlens=torch.tensor([0, 2048]).cuda())


@needs_gpu
def test_gpu_calls_follow_the_stream_and_do_not_wait():
    arrays = long_input()
    expected = s2o.attention(*arrays, **ON_GPU)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        s2o.attention(*arrays, **ON_GPU)  # makes the workspace of this stream
        late = [torch.zeros_like(x) for x in arrays]
        stream.synchronize()
        torch.cuda._sleep(200_000_000)  # some 100 ms
        for target, source in zip(late, arrays):
            target.copy_(source)
        found = s2o.attention(*late, **ON_GPU)
        assert not stream.query()  # the device still sleeps
        stream.synchronize()
    assert torch.equal(found, expected)


@needs_gpu
def test_gpu_calls_can_be_captured_in_a_graph():
    arrays = long_input()
    expected = s2o.attention(*arrays, **ON_GPU)
    out = torch.empty_like(expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        s2o.attention(*arrays, out=out, **ON_GPU)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            s2o.attention(*arrays, out=out, **ON_GPU)
        out.zero_()
        graph.replay()
        stream.synchronize()
    assert torch.equal(out, expected)


@needs_gpu
def test_gpu_threads_with_streams_of_their_own():
    inputs = [long_input(4096), tuple(x.flip(1) for x in long_input(4096))]
    expected = [s2o.attention(*arrays, **ON_GPU) for arrays in inputs]
    torch.cuda.synchronize()
    failures = []

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found = s2o.attention(*inputs[index], **ON_GPU)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(found, expected[index]):
                    failures.append(index)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@needs_gpu
def test_gpu_memory_is_kept_and_freed():
    arrays = long_input()
    s2o.clear_cache()
    s2o.attention(*arrays, **ON_GPU)
    kept = s2o.cache_bytes()
    s2o.attention(*arrays, **ON_GPU)
    assert s2o.cache_bytes() == kept > 0
    s2o.clear_cache()
    assert s2o.cache_bytes() == 0


@needs_gpu
def test_gpu_refusals(on_gpu, tensors):
    q, k, v = on_gpu
    with pytest.raises(s2o.InputError, match="k: is on cpu, expected cuda:0, where q is"):
        s2o.attention(q, k.cpu(), v)
    with pytest.raises(s2o.UnsupportedError, match="dtype is fp32, supported are bf16 and fp16"):
        s2o.attention(*(x.cuda() for x in tensors))
    narrow = [x[..., :32].contiguous() for x in on_gpu]
    with pytest.raises(s2o.UnsupportedError, match="head_dim is 32, supported are 64, 96, 128 and 256"):
        s2o.attention(*narrow, "dense")
    odd = torch.empty(q.numel() + 1, dtype=q.dtype, device="cuda")[1:].view_as(q).copy_(q)
    with pytest.raises(s2o.InputError, match="q: begins at address .* expected a multiple of 16 bytes"):
        s2o.attention(odd, k, v)
    bad = q.clone()
    bad[1, 700, 3] = float("nan")
    with pytest.raises(s2o.InputError, match="a score is not finite"):
        s2o.attention(bad, k, v, check=True, **ON_GPU)
    assert torch.isfinite(s2o.attention(q, k, v, check=True, **ON_GPU)).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus():
    first = long_input(device="cuda:0")
    second = [x.to("cuda:1") for x in first]
    expected = s2o.attention(*first, **ON_GPU)
    assert torch.cuda.current_device() == 0
    found = s2o.attention(*second, **ON_GPU)
    assert found.device.index == 1 and torch.cuda.current_device() == 0
    assert torch.equal(found.cpu(), expected.cpu())
    with torch.cuda.device(1):
        assert torch.equal(s2o.attention(*first, **ON_GPU), expected)
        assert torch.cuda.current_device() == 1
    with pytest.raises(s2o.InputError, match="k: is on cuda:1, expected cuda:0"):
        s2o.attention(first[0], second[1], second[2])
