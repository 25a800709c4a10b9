#include "lib/report/result_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/report/results_file.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::size_t kProbeBytes = 64 << 10;
constexpr const char* kJournalPrevious = "rows.previous.jsonl";

bool file_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// Whether `row` is the outcome of the cell that `cell` describes. The seqlen of a cell may be
// unknown before its file is read.
bool same_cell(const ResultRow& cell, const ResultRow& row) {
  const bool same_seqlen = cell.seqlen == 0 || row.seqlen == 0 || cell.seqlen == row.seqlen;
  return same_seqlen && cell.input_id == row.input_id && cell.input == row.input &&
         cell.layer == row.layer && cell.method == row.method && cell.params == row.params &&
         cell.backend == row.backend;
}

std::string output_name(std::size_t cell) { return fmt::format("rows.partial.{}.f32", cell); }

std::string previous_name(const fs::path& name) {
  return name.stem().string() + ".previous" + name.extension().string();
}

}  // namespace

std::string first_difference(const Json& a, const Json& b, const std::string& path) {
  if (a == b) return "";
  if (a.is_object() && b.is_object()) {
    const std::string prefix = path.empty() ? "" : path + ".";
    for (const auto& [key, value] : a.items()) {
      if (!b.contains(key)) return prefix + key;
      const std::string inner = first_difference(value, b[key], prefix + key);
      if (!inner.empty()) return inner;
    }
    for (const auto& [key, value] : b.items()) {
      if (!a.contains(key)) return prefix + key;
    }
  } else if (a.is_array() && b.is_array()) {
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      const std::string inner = first_difference(a[i], b[i], fmt::format("{}[{}]", path, i));
      if (!inner.empty()) return inner;
    }
  }
  return path.empty() ? "the order of the keys" : path;
}

FolderLock::FolderLock(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    throw ConfigError(fmt::format("--out {}: cannot be made a folder: {}", folder.string(),
                                  error ? error.message() : "it is a file"));
  }
  fd_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ < 0) {
    throw ConfigError(
        fmt::format("--out {}: cannot be opened: {}", folder.string(), std::strerror(errno)));
  }
  // A file system without locks is no reason to refuse the work.
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(fd_);
    throw ConfigError(
        fmt::format("--out {}: another run is writing into this folder", folder.string()));
  }
}

FolderLock::~FolderLock() { ::close(fd_); }

ResultStore::ResultStore(fs::path folder, Json context, std::vector<ResultRow> expected,
                         const StoreOptions& options)
    : folder_(std::move(folder)),
      context_(std::move(context)),
      expected_(std::move(expected)),
      options_(options),
      lock_(folder_) {
  probe();
  keep_previous_ = !options_.resume || !has_own_results();
  if (options_.resume) {
    resume();
    return;
  }
  put_aside(kJournalName, kJournalPrevious);
  journal_ = std::make_unique<Journal>(folder_ / kJournalName, context_);
}

// An hour of computing must not end in "permission denied".
void ResultStore::probe() const {
  const fs::path path = folder_ / ".write-probe";
  AtomicFile file(path);
  file.write(std::string(kProbeBytes, ' '));
  file.commit();
  std::error_code ignored;
  fs::remove(path, ignored);
}

void ResultStore::check_same_config(const Json& context, const std::string& file) const {
  const auto hash =
      context.is_object() ? context.value("config_hash", std::string("none")) : "none";
  if (hash != context_["config_hash"]) {
    const Json theirs = context.is_object() ? context.value("config", Json()) : Json();
    throw ConfigError(
        fmt::format("--resume: {} belongs to config {}, this is config {}; they differ in: {}. "
                    "Choose another --out, or leave --resume away to start again",
                    (folder_ / file).string(), hash, context_["config_hash"].get<std::string>(),
                    first_difference(context_["config"], theirs)));
  }
  check_same_inputs(context, file);
  const auto commit = context.value("git_commit", std::string("unknown"));
  if (commit != context_["git_commit"]) {
    log_warning("--resume: the rows so far were computed by commit {}, the others by {}", commit,
                context_["git_commit"].get<std::string>());
  }
}

// The same config may mean other numbers: a file that it names was replaced.
void ResultStore::check_same_inputs(const Json& context, const std::string& file) const {
  const Json ours = context_.value("inputs", Json::array());
  const Json theirs = context.value("inputs", Json::array());
  for (std::size_t i = 0; i < std::max(ours.size(), theirs.size()); ++i) {
    const Json mine = i < ours.size() ? ours[i] : Json::object();
    const Json earlier = i < theirs.size() ? theirs[i] : Json::object();
    const std::string difference = first_difference(mine, earlier);
    if (difference.empty()) continue;
    throw ConfigError(fmt::format(
        "--resume: input '{}' is not what it was when the rows of {} were computed; it differs in: "
        "{}. Choose another --out, or leave --resume away to start again",
        (mine.empty() ? earlier : mine).value("name", ""), (folder_ / file).string(), difference));
  }
}

bool ResultStore::has_own_results() const {
  try {
    const Json theirs = read_results(folder_).context;
    return theirs.value("config_hash", Json()) == context_["config_hash"] &&
           theirs.value("inputs", Json()) == context_.value("inputs", Json());
  } catch (const Error&) {
    return false;
  }
}

void ResultStore::take_over(const ResultTable& earlier) {
  for (const ResultRow& row : earlier.rows) {
    for (std::size_t cell = 0; cell < expected_.size(); ++cell) {
      if (rows_.contains(cell) || !same_cell(expected_[cell], row)) continue;
      rows_[cell] = {row, ""};
      break;
    }
  }
}

void ResultStore::take_over(const JournalEntry& entry) {
  const bool lacks_output = options_.save_outputs && !entry.row.error && entry.output_file.empty();
  // An input file may have changed between the runs, and with it what the cell is.
  if (lacks_output || entry.cell >= expected_.size() ||
      !same_cell(expected_[entry.cell], entry.row)) {
    return;
  }
  rows_[entry.cell] = {entry.row, entry.output_file};
}

void ResultStore::resume() {
  const bool has_journal = file_exists(folder_ / kJournalName);
  JournalContent content;
  if (has_journal) content = read_journal(folder_ / kJournalName);
  if (!content.context.is_null()) {
    check_same_config(content.context, kJournalName);
    for (const JournalEntry& entry : content.entries) take_over(entry);
    journal_ = std::make_unique<Journal>(folder_ / kJournalName, content.valid_bytes);
    log_info("--resume: {} of {} rows are there", rows_.size(), expected_.size());
    return;
  }
  // A journal that was cut off before it held anything leaves the results of others alone.
  const bool has_results =
      file_exists(folder_ / kHdf5ResultsName) || file_exists(folder_ / kJsonResultsName);
  if (has_results && (!has_journal || !keep_previous_)) {
    const ResultTable earlier = read_results(folder_);
    check_same_config(earlier.context, kJsonResultsName);
    // Outputs stay in results.h5 alone; a complete file needs no change, from others they are
    // computed again.
    take_over(earlier);
    if (is_complete()) {
      context_ = earlier.context;
      log_info("--resume: all {} rows are there, nothing is left to do", rows_.size());
      return;
    }
    if (options_.save_outputs) rows_.clear();
  }
  journal_ = std::make_unique<Journal>(folder_ / kJournalName, context_);
  for (const auto& [cell, stored] : rows_) journal_->append({cell, stored.row, ""});
}

bool ResultStore::has_row(std::size_t cell) const {
  const auto found = rows_.find(cell);
  return found != rows_.end() && !found->second.row.error;
}

bool ResultStore::is_complete() const {
  for (std::size_t cell = 0; cell < expected_.size(); ++cell) {
    if (!has_row(cell)) return false;
  }
  return true;
}

void ResultStore::add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) {
  StoredRow stored = {.row = row};
  try {
    if (options_.save_outputs && !out.empty()) {
      stored.output_file = output_name(cell);
      AtomicFile file(folder_ / stored.output_file);
      file.write(out.data(), out.size() * sizeof(float));
      file.commit();
    }
    journal_->append({cell, row, stored.output_file});
  } catch (const Error& error) {
    throw UnsupportedError(fmt::format(
        "{}. {} of {} rows are safe in {}; make room, then run again with --resume", error.what(),
        rows_.size(), expected_.size(), (folder_ / kJournalName).string()));
  }
  rows_[cell] = std::move(stored);
}

ResultTable ResultStore::table() const {
  ResultTable table = {.context = context_};
  for (const auto& [cell, stored] : rows_) table.rows.push_back(stored.row);
  return table;
}

std::vector<float> ResultStore::read_output(const StoredRow& stored) const {
  if (stored.output_file.empty()) return {};
  const ResultRow& row = stored.row;
  std::vector<float> out(static_cast<std::size_t>(row.num_q_heads * row.seqlen * row.head_dim));
  const auto bytes = static_cast<std::streamsize>(out.size() * sizeof(float));
  std::ifstream file(folder_ / stored.output_file, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(out.data()), bytes)) {
    throw InputError(fmt::format("{}: cannot be read, or is shorter than {} bytes",
                                 (folder_ / stored.output_file).string(), bytes));
  }
  return out;
}

void ResultStore::put_aside(const std::string& name, const std::string& previous) const {
  if (!file_exists(folder_ / name)) return;
  std::error_code error;
  fs::rename(folder_ / name, folder_ / previous, error);
  if (error) {
    throw ConfigError(fmt::format("{}: cannot be renamed to {}: {}", (folder_ / name).string(),
                                  previous, error.message()));
  }
  log_warning("{}: kept as {}", (folder_ / name).string(), previous);
}

void ResultStore::finish() {
  if (!journal_) return;
  if (rows_.empty()) {
    drop_journal();
    return;
  }
  const fs::path new_json = folder_ / ".results.new.json";
  const fs::path new_hdf5 = folder_ / ".results.new.h5";
  try {
    const ResultTable current = table();
    std::vector<const StoredRow*> stored;
    for (const auto& [cell, row] : rows_) stored.push_back(&row);
    // Nothing earlier is touched before both new files are whole.
    write_results_json(new_json, current);
    write_results_hdf5(new_hdf5, current, [&](std::size_t i) { return read_output(*stored[i]); });
    for (const auto& [file, name] :
         {std::pair(new_json, kJsonResultsName), std::pair(new_hdf5, kHdf5ResultsName)}) {
      if (keep_previous_) put_aside(name, previous_name(name));
      fs::rename(file, folder_ / name);
    }
    keep_previous_ = false;
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove(new_json, ignored);
    fs::remove(new_hdf5, ignored);
    throw UnsupportedError(fmt::format(
        "{}. All {} rows are in {}; once the cause is gone, --resume writes the result files",
        error.what(), rows_.size(), (folder_ / kJournalName).string()));
  }
  if (is_complete()) drop_journal();
}

void ResultStore::drop_journal() {
  journal_.reset();
  std::error_code ignored;
  fs::remove(folder_ / kJournalName, ignored);
  for (std::size_t cell = 0; cell < expected_.size(); ++cell) {
    fs::remove(folder_ / output_name(cell), ignored);
  }
}

}  // namespace s2o
