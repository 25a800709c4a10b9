// The tables of the paper, each made from result rows alone. To add one: write
// lib/report/tables/foo.cpp that defines `const PaperTable& table_foo()`, and add S2O_TABLE(foo) to
// tables.def.
#pragma once

#include <string>
#include <vector>

#include "lib/report/match.h"

namespace s2o {

struct PaperTable {
  std::string name;     // "matched_sparsity"
  std::string summary;  // one line
  // ConfigError when the results do not hold what the table needs.
  Report (*build)(const ResultTable& table, const MatchOptions& options);
};

// All tables, in the order of tables.def.
const std::vector<const PaperTable*>& all_paper_tables();
// ConfigError with the nearest name when there is none.
const PaperTable& find_paper_table(const std::string& name);

}  // namespace s2o
