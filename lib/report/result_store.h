// The output folder of a run. A row is durable as soon as it is added (journal.h); finish() turns
// the rows into results.json and results.h5. Nothing that was there before is destroyed: without
// `resume`, earlier results stay as results.previous.{json,h5} and an unfinished journal as
// rows.previous.jsonl, one generation of each.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "lib/eval/result_table.h"
#include "lib/report/journal.h"

namespace s2o {

struct StoreOptions {
  bool resume = false;        // take over finished rows of an earlier run with the same config
  bool save_outputs = false;  // keep outputs for results.h5
  // With `resume`: cells whose failure stands, because a process before this one, of the same run,
  // has just seen it.
  std::vector<std::size_t> keep_failed;
};

// Keeps other runs out of a folder while it lives.
class FolderLock {
 public:
  // Creates the folder. ConfigError when that fails or another process holds the lock.
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

class ResultStore {
 public:
  // `expected` are the rows of all cells before they ran: an earlier row counts only where input,
  // layer, seqlen, method, parameters and backend still agree.
  //
  // Creates the folder, locks it against other runs and writes a probe. ConfigError when the folder
  // cannot be written or is in use, or when `resume` finds results of another config or of inputs
  // that have changed since;
  // UnsupportedError when the disk is full.
  ResultStore(std::filesystem::path folder, nlohmann::ordered_json context,
              std::vector<ResultRow> expected, const StoreOptions& options);
  // A finished row without an error; failed ones are computed again, but for keep_failed.
  bool has_row(std::size_t cell) const;
  // Cells that failed in this run, keep_failed included, ascending.
  std::vector<std::size_t> failed_cells() const;
  std::size_t num_rows() const { return rows_.size(); }
  // `out` may be empty.
  void add(std::size_t cell, const ResultRow& row, const std::vector<float>& out);
  // The rows so far, in the order of the cells.
  ResultTable table() const;
  // Writes both result files. The journal goes once every cell has a row without an error.
  void finish();

 private:
  void probe() const;
  void resume();
  void take_over(const ResultTable& earlier);
  void take_over(const JournalEntry& entry);
  void check_same_config(const nlohmann::ordered_json& context, const std::string& file) const;
  void check_same_inputs(const nlohmann::ordered_json& context, const std::string& file) const;
  // Whether a result file here is of the same config and inputs: it may be replaced then.
  bool is_own(const std::string& name) const;
  void put_aside(const std::string& name, const std::string& previous) const;
  void drop_journal();
  void remove_outputs() const;
  bool has_output(std::size_t cell, const ResultRow& row) const;
  // Where the rows so far are, for messages about what went wrong.
  std::string whereabouts() const;
  bool is_done(std::size_t cell) const;  // without an error
  bool is_complete() const;
  std::vector<float> read_output(const JournalEntry& stored) const;

  std::filesystem::path folder_;
  nlohmann::ordered_json context_;
  std::vector<ResultRow> expected_;
  StoreOptions options_;
  FolderLock lock_;
  std::map<std::size_t, JournalEntry> rows_;  // by cell
  std::set<std::size_t> failed_;              // of rows_, in this run
  std::unique_ptr<Journal> journal_;          // null when there is nothing left to compute
};

// "methods[1].tau": where two configs differ first, or "" if they do not.
std::string first_difference(const nlohmann::ordered_json& a, const nlohmann::ordered_json& b,
                             const std::string& path = "");

}  // namespace s2o
