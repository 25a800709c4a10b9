// DLPack's C functions of a library's array type (its attribute __dlpack_c_exchange_api__, since
// DLPack 1.2): an array described in some ten nanoseconds, and the stream that the library works
// in. The layout of these structs is DLPack's ABI.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

namespace s2o::python {

struct ExchangeApi {
  std::uint32_t major_version;
  std::uint32_t minor_version;
  const ExchangeApi* older;  // of a lower major version; may be null
  void* allocate;
  void* export_owning;
  void* import_owning;
  // Borrows; 0, or -1 with a Python exception set. May be null.
  int (*describe)(void* array, nanobind::dlpack::dltensor* described);
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

// Null where the type has none that we can use. Needs the GIL.
const ExchangeApi* exchange_api(nanobind::handle type);

}  // namespace s2o::python
