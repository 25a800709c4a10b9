// Result files of a run: results.json (for people and scripts) and results.h5 (the same table, and
// per-head values, stop steps and outputs).
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "lib/eval/result_table.h"

namespace s2o {

inline constexpr const char* kJsonResultsName = "results.json";
inline constexpr const char* kHdf5ResultsName = "results.h5";

// A result file by its extension (.json, .h5, .hdf5), or the folder of a run: its results.h5, which
// holds more, or else its results.json. InputError for files that are missing or broken.
ResultTable read_results(const std::filesystem::path& path);

ResultTable read_results_hdf5(const std::filesystem::path& file);

// True for an HDF5 file with the layout of write_results_hdf5; false for anything else.
bool is_results_hdf5(const std::filesystem::path& file);

// The output [num_q_heads, seqlen, head_dim] of row i, or an empty vector.
using RowOutputs = std::function<std::vector<float>(std::size_t)>;

// Both files appear whole or not at all. Errors as of lib/core/atomic_file.h.
void write_results_json(const std::filesystem::path& file, const ResultTable& table);
// Layout: attribute schema_version; /context with the attribute `json` and the plain fields as
// attributes; /table/<column> [num_rows]; /rows/<i>/per_head/<metric> [num_q_heads],
// /rows/<i>/per_layer/<metric> [num_layers] of a prefill, /rows/<i>/stop_steps, /rows/<i>/out. In
// /table, NaN is null in numbers and "" is null in `error`.
void write_results_hdf5(const std::filesystem::path& file, const ResultTable& table,
                        const RowOutputs& outputs);

}  // namespace s2o
