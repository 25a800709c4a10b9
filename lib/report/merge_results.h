// Result files of several runs as one table.
#pragma once

#include <filesystem>
#include <vector>

#include "lib/eval/result_table.h"

namespace s2o {

// Reads every path (read_results of results_file.h) and joins the rows in that order. Where a cell
// (input and its id, layer, seqlen, method, parameters, backend, kernel) occurs again, the later
// row replaces the earlier, unless only the earlier one succeeded; a warning says how many. Inputs
// of one name that are not the same get longer names. The context is that of the first path.
// InputError when two rows of one file are the same cell.
ResultTable read_merged_results(const std::vector<std::filesystem::path>& paths);

// The joining alone: adds the rows of `more` to `table`; returns how many replaced a row.
std::size_t merge_rows(ResultTable& table, const std::vector<ResultRow>& more);

}  // namespace s2o
