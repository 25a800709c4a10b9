// rows.partial.jsonl: every finished row of a run, on disk as soon as it is computed. The first
// line is the run's context; each further line is one cell.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "lib/core/line_file.h"
#include "lib/eval/result_table.h"

namespace s2o {

inline constexpr const char* kJournalName = "rows.partial.jsonl";

struct JournalEntry {
  std::size_t cell = 0;
  ResultRow row;
  std::string output_file;  // in the same folder, raw fp32 values; "" = none
};

// As a line of the journal. InputError, beginning with `where`, for anything else.
nlohmann::ordered_json entry_to_json(const JournalEntry& entry);
JournalEntry entry_from_json(const nlohmann::ordered_json& line, const std::string& where);

struct JournalContent {
  nlohmann::ordered_json context;  // null when not even the first line is whole
  std::vector<JournalEntry> entries;
  std::uintmax_t valid_bytes = 0;  // what comes after is a line that a crash cut off
};

// InputError for a broken line; a last line that is not whole is left out with a warning.
JournalContent read_journal(const std::filesystem::path& file);
// The same of a text, which `file` names in messages; and the text of whole results.
JournalContent parse_journal(const std::string& text, const std::string& file);
std::string journal_text(const ResultTable& table);

// Appends lines, each flushed to disk before append() returns.
class Journal {
 public:
  // Starts a new file with the context, or goes on after `valid_bytes` of an existing one.
  // ConfigError when the file cannot be opened.
  Journal(const std::filesystem::path& file, const nlohmann::ordered_json& context);
  Journal(const std::filesystem::path& file, std::uintmax_t valid_bytes);

  // UnsupportedError when the disk is full, and the lines before stay whole; or when the file is no
  // longer where it was.
  void append(const JournalEntry& entry);
  // Where the file is: its path, the one that it was moved to, or "" when it was removed.
  std::string place() const { return lines_.place(); }

 private:
  LineFile lines_;
};

}  // namespace s2o
