#include "lib/input/formats/hdf5_listing.h"

#include <fmt/format.h>

#include <utility>

#include "lib/core/error.h"
#include "lib/core/strict_json.h"
#include "lib/input/formats/tensor_table.h"

namespace s2o {

using nlohmann::json;

std::string listing_text(const Hdf5Listing& listing) {
  json tensors = json::array();
  for (const TensorInfo& info : listing.tensors) {
    tensors.push_back(
        {{"name", info.name}, {"dtype", static_cast<int>(info.dtype)}, {"shape", info.shape}});
  }
  const json value = {
      {"tensors", tensors}, {"skipped", listing.skipped}, {"metadata", listing.metadata}};
  // Names are whatever bytes the file has.
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Hdf5Listing parse_listing(const std::string& file, const std::string& text) {
  Hdf5Listing listing;
  try {
    const json value = parse_strict_json_sorted(text);
    listing.skipped = value.at("skipped").get<std::map<std::string, std::string>>();
    listing.metadata = value.at("metadata").get<TensorMetadata>();
    for (const json& tensor : value.at("tensors")) {
      TensorInfo info;
      info.name = tensor.at("name").get<std::string>();
      const int dtype = tensor.at("dtype").get<int>();
      if (dtype < 0 || dtype > static_cast<int>(DType::kBool)) {
        throw InputError(fmt::format("{}: unknown dtype {}", tensor_place(file, info.name), dtype));
      }
      info.dtype = static_cast<DType>(dtype);
      info.shape = tensor.at("shape").get<std::vector<std::int64_t>>();
      info.num_bytes = checked_tensor_bytes(tensor_place(file, info.name), info.shape, info.dtype);
      listing.tensors.push_back(std::move(info));
    }
  } catch (const JsonTextError& error) {
    throw InputError(fmt::format("{}: listing is broken: {}", file, error.what()));
  } catch (const json::exception& error) {
    throw InputError(fmt::format("{}: listing is broken: {}", file, error.what()));
  }
  return listing;
}

}  // namespace s2o
