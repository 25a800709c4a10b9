#include "lib/report/result_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/regular_file.h"
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

constexpr std::string_view kOutputPrefix = "rows.partial.";
constexpr std::string_view kOutputSuffix = ".f32";
std::string output_name(std::size_t cell) {
  return fmt::format("{}{}{}", kOutputPrefix, cell, kOutputSuffix);
}

std::size_t output_bytes(const ResultRow& row) {
  return sizeof(float) * static_cast<std::size_t>(row.num_q_heads * row.seqlen * row.head_dim);
}

[[noreturn]] void refuse_to_resume(const std::string& why) {
  throw ConfigError(fmt::format(
      "--resume: {}. Choose another --out, or leave --resume away to start again", why));
}

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
  remove_leftovers(folder_);
  if (options_.resume) {
    resume();
    return;
  }
  put_aside(kJournalName, kJournalPrevious);
  remove_outputs();
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
    refuse_to_resume(fmt::format("{} belongs to config {}, this is config {}; they differ in: {}",
                                 (folder_ / file).string(), hash,
                                 context_["config_hash"].get<std::string>(),
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
  if (!context.contains("inputs") && !ours.empty()) {
    refuse_to_resume(fmt::format("{} is of an earlier s2o, which did not note what its inputs were",
                                 (folder_ / file).string()));
  }
  for (std::size_t i = 0; i < std::max(ours.size(), theirs.size()); ++i) {
    const Json mine = i < ours.size() ? ours[i] : Json::object();
    const Json earlier = i < theirs.size() ? theirs[i] : Json::object();
    const std::string difference = first_difference(mine, earlier);
    if (difference.empty()) continue;
    refuse_to_resume(fmt::format(
        "input '{}' is not what it was when the rows of {} were computed; it differs in: {}",
        (mine.empty() ? earlier : mine).value("name", ""), (folder_ / file).string(), difference));
  }
}

bool ResultStore::is_own(const std::string& name) const {
  try {
    const Json theirs = read_results(folder_ / name).context;
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
      rows_[cell] = {cell, row, ""};
      break;
    }
  }
}

void ResultStore::take_over(const JournalEntry& entry) {
  // An input file may have changed between the runs, and with it what the cell is.
  if (entry.cell >= expected_.size() || !same_cell(expected_[entry.cell], entry.row)) return;
  const bool needs_output = options_.save_outputs && !entry.row.error;
  if (needs_output && !has_output(entry.cell, entry.row)) return;
  rows_[entry.cell] = {entry.cell, entry.row, needs_output ? output_name(entry.cell) : ""};
}

// Whatever a journal says: an output is the file of its cell, in this folder, of the right size.
bool ResultStore::has_output(std::size_t cell, const ResultRow& row) const {
  const fs::path path = folder_ / output_name(cell);
  std::error_code error;
  const auto status = fs::symlink_status(path, error);
  return !error && fs::is_regular_file(status) && fs::file_size(path, error) == output_bytes(row) &&
         !error;
}

void ResultStore::resume() {
  const bool has_journal = file_exists(folder_ / kJournalName);
  JournalContent content;
  if (has_journal) content = read_journal(folder_ / kJournalName);
  if (!content.context.is_null()) {
    check_same_config(content.context, kJournalName);
    for (const JournalEntry& entry : content.entries) take_over(entry);
    for (const std::size_t cell : options_.keep_failed) {
      if (rows_.contains(cell) && !is_done(cell)) failed_.insert(cell);
    }
    // The device that it names may be gone by now.
    if (!options_.keep_failed.empty()) context_ = content.context;
    journal_ = std::make_unique<Journal>(folder_ / kJournalName, content.valid_bytes);
    log_info("--resume: {} of {} rows are there", rows_.size(), expected_.size());
    return;
  }
  const bool own_hdf5 = is_own(kHdf5ResultsName);
  const bool own_json = is_own(kJsonResultsName);
  if (own_hdf5 || own_json) {
    const ResultTable earlier =
        read_results(folder_ / (own_hdf5 ? kHdf5ResultsName : kJsonResultsName));
    check_same_config(earlier.context, own_hdf5 ? kHdf5ResultsName : kJsonResultsName);
    // Outputs stay in results.h5 alone; a complete file needs no change, from others they are
    // computed again.
    take_over(earlier);
    if (is_complete() && own_hdf5 && own_json) {
      context_ = earlier.context;
      remove_outputs();
      log_info("--resume: all {} rows are there, nothing is left to do", rows_.size());
      return;
    }
    if (options_.save_outputs) rows_.clear();
  } else if (!has_journal &&
             (file_exists(folder_ / kHdf5ResultsName) || file_exists(folder_ / kJsonResultsName))) {
    // A journal that was cut off before it held anything says that a run of ours began here.
    check_same_config(read_results(folder_).context, kJsonResultsName);
  }
  journal_ = std::make_unique<Journal>(folder_ / kJournalName, context_);
  for (const auto& [cell, stored] : rows_) journal_->append(stored);
}

bool ResultStore::is_done(std::size_t cell) const {
  const auto found = rows_.find(cell);
  return found != rows_.end() && !found->second.row.error;
}

bool ResultStore::has_row(std::size_t cell) const {
  const auto& kept = options_.keep_failed;
  const bool stands = std::find(kept.begin(), kept.end(), cell) != kept.end();
  return is_done(cell) || (stands && failed_.contains(cell));
}

std::vector<std::size_t> ResultStore::failed_cells() const {
  return {failed_.begin(), failed_.end()};
}

bool ResultStore::is_complete() const {
  for (std::size_t cell = 0; cell < expected_.size(); ++cell) {
    if (!is_done(cell)) return false;
  }
  return true;
}

void ResultStore::add(std::size_t cell, const ResultRow& row, const std::vector<float>& out) {
  JournalEntry stored = {.cell = cell, .row = row};
  try {
    if (options_.save_outputs && !out.empty()) {
      stored.output_file = output_name(cell);
      AtomicFile file(folder_ / stored.output_file);
      file.write(out.data(), out.size() * sizeof(float));
      file.commit();
    }
    journal_->append(stored);
  } catch (const Error& error) {
    throw UnsupportedError(fmt::format("{}. {}", error.what(), whereabouts()));
  }
  if (row.error) {
    failed_.insert(cell);
  } else {
    failed_.erase(cell);
  }
  rows_[cell] = std::move(stored);
}

ResultTable ResultStore::table() const {
  ResultTable table = {.context = context_};
  for (const auto& [cell, stored] : rows_) table.rows.push_back(stored.row);
  return table;
}

std::vector<float> ResultStore::read_output(const JournalEntry& stored) const {
  if (stored.output_file.empty()) return {};
  std::vector<float> out(output_bytes(stored.row) / sizeof(float));
  const RegularFile file(folder_ / stored.output_file);
  if (file.read(0, out.data(), out.size() * sizeof(float)) != out.size() * sizeof(float)) {
    throw InputError(fmt::format("{}: is shorter than {} bytes", file.path().string(),
                                 out.size() * sizeof(float)));
  }
  return out;
}

std::string ResultStore::whereabouts() const {
  const std::string journal = (folder_ / kJournalName).string();
  const std::string place = journal_->place();
  if (place.empty()) {
    return fmt::format("The file of the {} rows so far is gone with it", rows_.size());
  }
  if (place != journal) {
    return fmt::format("{} of {} rows are in {}; go on there with --resume and --out", rows_.size(),
                       expected_.size(), place);
  }
  return fmt::format("{} of {} rows are safe in {}; once the cause is gone, go on with --resume",
                     rows_.size(), expected_.size(), journal);
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
  if (journal_->place() != (folder_ / kJournalName).string()) {
    throw UnsupportedError(fmt::format("{}: was removed or moved during the run. {}",
                                       folder_.string(), whereabouts()));
  }
  if (rows_.empty()) {
    drop_journal();
    return;
  }
  const fs::path new_json = folder_ / ".results.new.json";
  const fs::path new_hdf5 = folder_ / ".results.new.h5";
  try {
    const ResultTable current = table();
    std::vector<const JournalEntry*> stored;
    for (const auto& [cell, row] : rows_) stored.push_back(&row);
    // Nothing earlier is touched before both new files are whole.
    write_results_json(new_json, current);
    write_results_hdf5(new_hdf5, current, [&](std::size_t i) { return read_output(*stored[i]); });
    for (const auto& [file, name] :
         {std::pair(new_json, kJsonResultsName), std::pair(new_hdf5, kHdf5ResultsName)}) {
      // After a crash between the two one is ours already, the other still that of an earlier run.
      if (!options_.resume || !is_own(name)) put_aside(name, previous_name(name));
      fs::rename(file, folder_ / name);
    }
    options_.resume = true;  // what is there is ours now
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove(new_json, ignored);
    fs::remove(new_hdf5, ignored);
    throw UnsupportedError(fmt::format("{}. {}", error.what(), whereabouts()));
  }
  if (is_complete()) drop_journal();
}

void ResultStore::drop_journal() {
  journal_.reset();
  std::error_code ignored;
  fs::remove(folder_ / kJournalName, ignored);
  remove_outputs();
}

// Those of any run: an earlier one may have had more cells.
void ResultStore::remove_outputs() const {
  std::vector<fs::path> outputs;
  std::error_code error;
  for (fs::directory_iterator entry(folder_, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(kOutputPrefix) && name.ends_with(kOutputSuffix)) {
      outputs.push_back(entry->path());
    }
  }
  std::error_code ignored;
  for (const fs::path& output : outputs) fs::remove(output, ignored);
}

}  // namespace s2o
