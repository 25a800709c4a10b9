#include "app/python/src/exchange.h"

#include <unordered_map>

namespace nb = nanobind;

namespace s2o::python {
namespace {

constexpr std::uint32_t kMajorVersion = 1;

const ExchangeApi* look_up(nb::handle type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  const auto* api =
      static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->major_version > kMajorVersion) api = api->older;
  const bool usable = api != nullptr && api->major_version == kMajorVersion &&
                      api->describe != nullptr && api->current_stream != nullptr;
  return usable ? api : nullptr;
}

}  // namespace

const ExchangeApi* exchange_api(nb::handle type) {
  static auto* const known = new std::unordered_map<PyObject*, const ExchangeApi*>;
  const auto found = known->find(type.ptr());
  if (found != known->end()) return found->second;
  type.inc_ref();  // its address stays its own
  return known->emplace(type.ptr(), look_up(type)).first->second;
}

}  // namespace s2o::python
