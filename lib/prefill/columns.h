// The measured columns of a prefill row: JSON keys, HDF5 datasets and table headers.
#pragma once

#include <vector>

#include "lib/metrics/metric.h"

namespace s2o {

// In order; `per_head` means nothing here.
const std::vector<MetricColumn>& prefill_columns();

}  // namespace s2o
