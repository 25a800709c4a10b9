// What tables of result rows have in common, whichever command printed them.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "lib/eval/result_table.h"
#include "lib/report/report_table.h"

namespace s2o {

// Which parameters tell the rows of a method apart: its knob, and all that vary.
class ParamColumns {
 public:
  explicit ParamColumns(const ResultTable& table);

  // "tau=0.01 segment_size=256"
  std::string text(const ResultRow& row) const;
  // "s2o: segment_size=256" for what all rows of a method share and its defaults do not say.
  std::vector<std::string> shared_notes(const ResultTable& table) const;

 private:
  std::map<std::string, std::set<std::string>> shown_;  // by method
};

// "tiny-llama/book, layer 1, seqlen 4096"; of a prefill "book, 4096 tokens".
std::string place_text(const ResultRow& row);

// What a reader has to know below the table: failures ("failed: s2o tau=0.1 on <place>: <why>", one
// note for settings that failed alike at one place), metrics that are null for a reason, then
// shared_notes.
std::vector<std::string> table_notes(const ResultTable& table, const ParamColumns& params);

// Every column of results.json.
ReportTable csv_table(const ResultTable& table);

}  // namespace s2o
