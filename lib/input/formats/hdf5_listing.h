// What an HDF5 file holds, as text: it is found out in another process (core/isolated.h).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "lib/input/formats/format.h"

namespace s2o {

struct Hdf5Listing {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> skipped;  // datasets that cannot be read, and why
  TensorMetadata metadata;
};

std::string listing_text(const Hdf5Listing& listing);
// InputError "<file>: ..." when the text is not one: a process that read a damaged file wrote it.
Hdf5Listing parse_listing(const std::string& file, const std::string& text);

}  // namespace s2o
