// The extension module s2o._core. What users call is app/python/s2o/__init__.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "app/describe_methods.h"
#include "app/python/src/exchange.h"
#include "app/python/src/own_array.h"
#include "app/python/src/session.h"
#include "lib/core/error.h"
#include "lib/core/version.h"
#include "lib/eval/backend.h"

namespace nb = nanobind;

namespace s2o::python {
namespace {

using Json = nlohmann::ordered_json;

nb::dlpack::dtype dlpack_type(const std::string& dtype) {
  using nb::dlpack::dtype_code;
  const bool bf16 = dtype == "bf16";
  return {.code = static_cast<std::uint8_t>(bf16 ? dtype_code::Bfloat : dtype_code::Float),
          .bits = static_cast<std::uint8_t>(dtype == "fp32" ? 32 : 16),
          .lanes = 1};
}

Tensor to_tensor(const char* name, const nb::dlpack::dltensor& array) {
  Tensor tensor;
  tensor.name = name;
  if (array.device.device_type != nb::device::cpu::value &&
      array.device.device_type != nb::device::cuda::value) {
    throw InputError(tensor.name + ": is on DLPack device type " +
                     std::to_string(array.device.device_type) + ", expected 1 (cpu) or 2 (cuda)");
  }
  tensor.data = static_cast<char*>(array.data) + array.byte_offset;
  tensor.shape.assign(array.shape, array.shape + array.ndim);
  if (array.strides != nullptr) tensor.strides.assign(array.strides, array.strides + array.ndim);
  for (const char* known : {"fp32", "bf16", "fp16"}) {
    if (array.dtype == dlpack_type(known)) tensor.dtype = known;
  }
  if (tensor.dtype.empty()) {
    tensor.dtype = "DLPack code " + std::to_string(array.dtype.code) + " of " +
                   std::to_string(array.dtype.bits) + " bits";
  }
  tensor.device =
      array.device.device_type == nb::device::cpu::value ? kCpu : array.device.device_id;
  return tensor;
}

// Of the Python exception that is set: what a library says of an array that it cannot describe, as
// one without memory. Texts of PyTorch go on with the stack of its C++ code.
InputError refusal_of_library(const char* name) {
  const nb::python_error error;
  const std::string text = nb::cast<std::string>(nb::str(error.value()));
  return InputError(std::string(name) + ": its library says: " + text.substr(0, text.find('\n')) +
                    "; expected an array with values");
}

// An array of a type with an exchange API, or a description (address, shape, strides or None,
// dtype, device).
Tensor read_tensor(const char* name, nb::handle array) {
  if (!nb::isinstance<nb::tuple>(array)) {
    const ExchangeApi* const api = exchange_api(array.type());
    if (api == nullptr) {
      throw InputError(std::string(name) + ": found " +
                       nb::cast<std::string>(array.type().attr("__name__")) +
                       ", expected a description or an array with DLPack's exchange API");
    }
    nb::dlpack::dltensor described;
    if (api->describe(array.ptr(), &described) != 0) throw refusal_of_library(name);
    return to_tensor(name, described);
  }
  const auto described = nb::cast<nb::tuple>(array);
  const auto extents = [](nb::handle values) {
    std::vector<std::int64_t> result;
    for (const nb::handle value : nb::cast<nb::tuple>(values)) {
      result.push_back(nb::cast<std::int64_t>(value));
    }
    return result;
  };
  if (described.size() != 5) {
    throw InputError(std::string(name) + ": found a description of " +
                     std::to_string(described.size()) + " fields, expected 5");
  }
  Tensor tensor;
  tensor.name = name;
  tensor.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(described[0]));
  tensor.shape = extents(described[1]);
  if (!described[2].is_none()) tensor.strides = extents(described[2]);
  tensor.dtype = nb::cast<std::string>(described[3]);
  tensor.device = nb::cast<int>(described[4]);
  return tensor;
}

// The stream given, or the current one of the library of an array with an exchange API.
std::uintptr_t stream_of(const std::optional<std::uintptr_t>& stream, nb::handle array,
                         const Call& call) {
  if (stream || call.device == kCpu) return stream.value_or(0);
  const ExchangeApi* const api = exchange_api(array.type());
  void* current = nullptr;
  if (api == nullptr) throw InputError("stream: found None, expected a CUDA stream");
  if (api->current_stream(nb::device::cuda::value, call.device, &current) != 0) {
    throw nb::python_error();
  }
  return reinterpret_cast<std::uintptr_t>(current);
}

Json to_json(nb::handle value, const std::string& where) {
  if (value.is_none()) return nullptr;
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
  if (nb::isinstance<nb::int_>(value)) {
    std::int64_t number = 0;
    if (nb::try_cast(value, number)) return number;
    throw ConfigError(where + ": found an integer of more than 64 bits");
  }
  if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
  if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
  if (nb::hasattr(value, "item") && nb::hasattr(value, "ndim") &&
      nb::cast<int>(value.attr("ndim")) == 0) {
    return to_json(value.attr("item")(), where);  // a number of NumPy
  }
  throw ConfigError(where + ": found " + nb::cast<std::string>(nb::repr(value)) + " (" +
                    nb::cast<std::string>(value.type().attr("__name__")) +
                    "), expected one number, string, bool or None");
}

Setting setting_of(const std::string& method, const nb::dict& params) {
  Json object = Json::object();
  for (const auto& [key, value] : params) {
    const auto name = nb::cast<std::string>(key);
    object[name] = to_json(value, method + "." + name);
  }
  return make_setting(method, object);
}

Call call_of(nb::handle q, nb::handle k, nb::handle v, double softmax_scale) {
  return make_call(read_tensor("q", q), read_tensor("k", k), read_tensor("v", v), softmax_scale);
}

Call call_of(nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
             double softmax_scale) {
  Call call = call_of(q, k, v, softmax_scale);
  set_output(call, read_tensor("out", out));
  if (!lse.is_none()) set_lse(call, read_tensor("lse", lse));
  return call;
}

// (planner, compute_density, pair_density, steps as int32 bytes, their shape) for every sequence.
nb::object to_python(const std::optional<std::vector<RunWork>>& works) {
  if (!works) return nb::none();
  nb::list list;
  for (const RunWork& work : *works) {
    list.append(
        nb::make_tuple(work.planner, work.compute_density, work.pair_density,
                       nb::bytes(work.steps.data(), work.steps.size() * sizeof(std::int32_t)),
                       nb::make_tuple(work.num_plan_heads, work.num_q_tiles)));
  }
  return list;
}

nb::object attend_arrays(const Setting& setting, nb::handle q, nb::handle k, nb::handle v,
                         nb::handle out, nb::handle lse, double softmax_scale,
                         const std::optional<std::uintptr_t>& stream, bool check, bool wants_work) {
  const Call call = call_of(q, k, v, out, lse, softmax_scale);
  const std::uintptr_t in_stream = stream_of(stream, q, call);
  std::optional<std::vector<RunWork>> works;
  {
    const nb::gil_scoped_release released;
    works = attend(setting, call, in_stream, check, wants_work);
  }
  return to_python(works);
}

std::unique_ptr<Plan> plan_arrays(const Setting& setting, nb::handle q, nb::handle k, nb::handle v,
                                  double softmax_scale, const std::optional<std::uintptr_t>& stream,
                                  bool check) {
  const Call call = call_of(q, k, v, softmax_scale);
  const std::uintptr_t in_stream = stream_of(stream, q, call);
  const nb::gil_scoped_release released;
  return make_plan(setting, call, in_stream, check);
}

std::string shape_text(const Call& call) {
  const Problem& p = call.problem;
  return std::to_string(call.batch) + " x " + std::to_string(p.num_q_heads) + " query and " +
         std::to_string(p.num_kv_heads) + " KV heads of " + std::to_string(p.seqlen) +
         " tokens x " + std::to_string(p.head_dim) + ", " +
         std::string(storage_dtype_name(call.dtype)) + " on " +
         (call.device == kCpu ? "cpu" : "cuda:" + std::to_string(call.device));
}

nb::object run_plan(Plan& plan, nb::handle q, nb::handle k, nb::handle v, nb::handle out,
                    nb::handle lse, const std::optional<std::uintptr_t>& stream, bool check,
                    bool wants_work) {
  Call call = call_of(q, k, v, out, lse, 0.0);
  call.problem.softmax_scale = plan.shape.problem.softmax_scale;
  const std::string found = shape_text(call);
  const std::string expected = shape_text(plan.shape);
  if (found != expected) {
    throw InputError("q, k, v: found " + found + ", the plan was made for " + expected);
  }
  const std::uintptr_t in_stream = stream_of(stream, q, call);
  std::optional<std::vector<RunWork>> works;
  {
    const nb::gil_scoped_release released;
    works = plan.run(call, in_stream, check, wants_work);
  }
  return to_python(works);
}

// The description of the array in a DLPack capsule, which its owner outlives.
nb::tuple describe_capsule(const std::string& name, const nb::handle& capsule) {
  nb::ndarray<nb::ro> array;
  if (!nb::try_cast(capsule, array)) {
    throw InputError(name + ": its __dlpack__() gives no DLPack capsule");
  }
  std::vector<std::int64_t> shape(array.shape_ptr(), array.shape_ptr() + array.ndim());
  std::vector<std::int64_t> strides(array.stride_ptr(), array.stride_ptr() + array.ndim());
  const Tensor tensor = to_tensor(
      name.c_str(), {.data = const_cast<void*>(static_cast<const void*>(array.data())),
                     .device = {.device_type = array.device_type(), .device_id = array.device_id()},
                     .ndim = static_cast<std::int32_t>(array.ndim()),
                     .dtype = array.dtype(),
                     .shape = shape.data(),
                     .strides = strides.data()});
  return nb::make_tuple(reinterpret_cast<std::uintptr_t>(tensor.data),
                        nb::tuple(nb::cast(tensor.shape)), nb::tuple(nb::cast(tensor.strides)),
                        tensor.dtype, tensor.device);
}

// A DLPack capsule, for libraries that cannot be asked for memory.
nb::object to_dlpack(const nb::handle& self) {
  const auto& array = nb::cast<const OwnArray&>(self);
  std::vector<std::size_t> shape(array.shape().begin(), array.shape().end());
  return nb::cast(nb::ndarray<>(
      array.data(), shape.size(), shape.data(), self, nullptr, dlpack_type(array.dtype()),
      array.device() == kCpu ? nb::device::cpu::value : nb::device::cuda::value,
      std::max(array.device(), 0)));
}

nb::list list_backend(const std::vector<BackendItem>& items) {
  nb::list list;
  for (const BackendItem& item : items) {
    list.append(nb::make_tuple(item.name, item.usable, item.detail));
  }
  return list;
}

}  // namespace
}  // namespace s2o::python

NB_MODULE(_core, m) {
  using namespace s2o;
  using namespace s2o::python;
  nb::set_leak_warnings(false);  // what modules keep to the end of the interpreter is no leak
  const nb::exception<Error> error(m, "Error", PyExc_RuntimeError);
  nb::exception<ConfigError>(m, "ConfigError", error);
  nb::exception<InputError>(m, "InputError", error);
  nb::exception<UnsupportedError>(m, "UnsupportedError", error);
  nb::exception<CudaError>(m, "CudaError", error);

  nb::class_<Setting>(m, "Setting")
      .def_prop_ro("method", [](const Setting& s) { return s.method->info().name; })
      .def_prop_ro("params_json", [](const Setting& s) { return s.params.to_json().dump(); });
  nb::class_<Plan>(m, "Plan")
      .def_ro("setting", &Plan::setting)
      .def_prop_ro("method", [](const Plan& plan) { return plan.setting.method->info().name; })
      .def_prop_ro(
          "params",
          [](const Plan& plan) {
            return nb::module_::import_("json").attr("loads")(plan.setting.params.to_json().dump());
          })
      .def_prop_ro("planner", [](const Plan& plan) { return std::string(plan.planner); })
      .def_prop_ro("shape", [](const Plan& plan) { return shape_text(plan.shape); })
      .def_prop_ro("bytes", &Plan::bytes);

  nb::class_<OwnArray>(m, "OwnArray")
      .def(nb::init<std::vector<std::int64_t>, std::string, int>())
      .def("describe",
           [](const OwnArray& array) {
             nb::list shape;
             for (const std::int64_t extent : array.shape()) shape.append(extent);
             return nb::make_tuple(reinterpret_cast<std::uintptr_t>(array.data()), nb::tuple(shape),
                                   nb::none(), array.dtype(), array.device());
           })
      .def("finish", &OwnArray::finish, nb::call_guard<nb::gil_scoped_release>())
      .def("to_dlpack", [](const nb::handle& self) { return to_dlpack(self); });
  m.def("describe_capsule", &describe_capsule);
  m.def("has_exchange_api", [](nb::handle type) { return exchange_api(type) != nullptr; });

  m.def("setting", &setting_of);
  m.def("attend", &attend_arrays, nb::arg("setting"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("out"), nb::arg("lse").none(), nb::arg("softmax_scale"), nb::arg("stream").none(),
        nb::arg("check"), nb::arg("wants_work"));
  m.def("plan", &plan_arrays, nb::arg("setting"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("softmax_scale"), nb::arg("stream").none(), nb::arg("check"));
  m.def("run", &run_plan, nb::arg("plan"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("out"),
        nb::arg("lse").none(), nb::arg("stream").none(), nb::arg("check"), nb::arg("wants_work"));
  m.def("clear_cache", [] {
    const nb::gil_scoped_release released;
    clear_cache();
  });
  m.def("cache_bytes", [] {
    const nb::gil_scoped_release released;
    return cache_bytes();
  });
  m.def("methods_json", [] { return describe_methods(false).dump(); });
  m.def("devices", [] { return list_backend(list_devices()); });
  m.def("kernels", [] { return list_backend(list_kernels()); });
  m.def("version", [] { return version_text(); });
}
