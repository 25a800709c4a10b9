#include "lib/report/result_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>

#include "lib/core/error.h"
#include "lib/report/results_file.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

constexpr std::size_t kNumCells = 3;

Json context_of(double tau, const std::string& commit = "abc") {
  const Json config = {{"seed", 0}, {"methods", {{{"name", "s2o"}, {"tau", tau}}}}};
  return {{"git_commit", commit},
          {"config", config},
          {"config_hash", "hash-of-" + std::to_string(tau)}};
}

ResultRow blank(std::size_t cell) {
  ResultRow row;
  row.input = "in";
  row.layer = static_cast<int>(cell);
  row.method = "s2o";
  row.params = {{"tau", 0.1}};
  row.backend = "cpu";
  return row;
}

ResultRow finished(std::size_t cell) {
  ResultRow row = blank(cell);
  row.seqlen = 2;
  row.num_q_heads = row.num_kv_heads = 1;
  row.head_dim = 2;
  row.metrics["mse"] = 0.5 + static_cast<double>(cell);
  row.per_head["mse"] = {0.5 + static_cast<double>(cell)};
  row.stop_steps = {static_cast<int>(cell)};
  return row;
}

ResultRow failed(std::size_t cell) {
  ResultRow row = blank(cell);
  row.error = "too little of everything";
  return row;
}

const std::vector<float> kOutput = {1.0f, 2.0f, 3.0f, 4.0f};

class ResultStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<ResultStore> open(StoreOptions options, const Json& context = context_of(0.1)) {
    std::vector<ResultRow> expected;
    for (std::size_t cell = 0; cell < kNumCells; ++cell) expected.push_back(blank(cell));
    return std::make_unique<ResultStore>(out_, context, expected, options);
  }
  // A run that computes the cells [first, last) and ends.
  void run(std::size_t first, std::size_t last, StoreOptions options = {},
           const Json& context = context_of(0.1)) {
    const auto store = open(options, context);
    for (std::size_t cell = first; cell < last; ++cell) store->add(cell, finished(cell), kOutput);
    store->finish();
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(out_ / name); }
  std::size_t num_files() const {
    const std::filesystem::directory_iterator files(out_);
    return static_cast<std::size_t>(std::distance(begin(files), end(files)));
  }

  TempFolder folder_;
  std::filesystem::path out_ = folder_ / "deep/out";
};

TEST_F(ResultStoreTest, complete_run_leaves_the_two_result_files_alone) {
  run(0, kNumCells);
  EXPECT_EQ(num_files(), 2u);
  EXPECT_EQ(read_results(out_ / "results.json").rows.size(), kNumCells);
  EXPECT_EQ(read_results(out_ / "results.h5").rows[2].stop_steps, std::vector<std::int32_t>{2});
}

TEST_F(ResultStoreTest, rows_come_in_the_order_of_the_cells) {
  const auto store = open({});
  for (const std::size_t cell : {2u, 0u, 1u}) store->add(cell, finished(cell), {});
  for (std::size_t i = 0; i < kNumCells; ++i) {
    EXPECT_EQ(store->table().rows[i].layer, static_cast<int>(i));
  }
}

TEST_F(ResultStoreTest, row_is_on_disk_before_add_returns) {
  const auto store = open({});
  store->add(0, finished(0), {});
  const JournalContent content = read_journal(out_ / kJournalName);
  ASSERT_EQ(content.entries.size(), 1u);
  EXPECT_EQ(content.entries[0].row.per_head.at("mse"), std::vector<double>{0.5});
  EXPECT_EQ(content.entries[0].row.stop_steps, std::vector<std::int32_t>{0});
}

TEST_F(ResultStoreTest, resume_takes_over_finished_rows_and_retries_failed_ones) {
  {
    const auto store = open({});
    store->add(0, finished(0), {});
    store->add(1, failed(1), {});
    store->finish();
  }
  EXPECT_TRUE(exists(kJournalName));
  const auto store = open({.resume = true});
  EXPECT_TRUE(store->has_row(0));
  EXPECT_FALSE(store->has_row(1));
  EXPECT_FALSE(store->has_row(2));
  store->add(1, finished(1), {});
  store->add(2, finished(2), {});
  store->finish();
  EXPECT_FALSE(exists(kJournalName));
  const ResultTable table = read_results(out_);
  ASSERT_EQ(table.rows.size(), kNumCells);
  EXPECT_FALSE(table.rows[1].error.has_value());
  EXPECT_EQ(table.rows[0].per_head.at("mse"), std::vector<double>{0.5});
}

// A process that goes on after another of the same run does not try again what failed there.
TEST_F(ResultStoreTest, failures_that_stand_are_kept_with_the_context_of_their_run) {
  {
    const auto store = open({});
    store->add(0, failed(0), {});
    store->add(1, failed(1), {});
    EXPECT_THAT(store->failed_cells(), ::testing::ElementsAre(0, 1));
  }
  Json context = context_of(0.1);
  context["device"] = "none";
  {
    const auto store = open({.resume = true, .keep_failed = {1, 2}}, context);
    EXPECT_FALSE(store->has_row(0));
    EXPECT_TRUE(store->has_row(1));
    EXPECT_FALSE(store->has_row(2));  // it never ran
    store->add(0, finished(0), {});
    store->add(2, finished(2), {});
    EXPECT_THAT(store->failed_cells(), ::testing::ElementsAre(1));
    store->finish();
    EXPECT_TRUE(exists(kJournalName));
  }
  EXPECT_FALSE(read_results(out_).context.contains("device"));
  EXPECT_FALSE(open({.resume = true})->has_row(1));
}

TEST_F(ResultStoreTest, line_that_a_crash_cut_off_is_dropped) {
  { open({})->add(0, finished(0), {}); }
  const std::string whole = read_file(out_ / kJournalName);
  write_file(out_ / kJournalName, whole + "{\"cell\": 1, \"row\": {\"inp");
  {
    const auto store = open({.resume = true});
    EXPECT_TRUE(store->has_row(0));
    store->add(1, finished(1), {});
  }
  EXPECT_EQ(read_journal(out_ / kJournalName).entries.size(), 2u);
}

TEST_F(ResultStoreTest, journal_whose_context_was_cut_off_starts_again) {
  { open({}); }
  const std::string line = read_file(out_ / kJournalName);
  write_file(out_ / kJournalName, line.substr(0, line.size() / 2));
  run(0, kNumCells, {.resume = true});
  EXPECT_EQ(read_results(out_).rows.size(), kNumCells);
}

TEST_F(ResultStoreTest, cut_journal_over_results_of_another_config_keeps_those) {
  run(0, kNumCells, {}, context_of(0.1));
  const std::string first = read_file(out_ / "results.json");
  { open({}, context_of(0.2)); }
  const std::string line = read_file(out_ / kJournalName);
  for (const std::size_t length : {line.size() / 2, std::size_t{0}}) {
    write_file(out_ / kJournalName, line.substr(0, length));
    EXPECT_FALSE(open({.resume = true}, context_of(0.2))->has_row(0));
  }
  write_file(out_ / kJournalName, "");
  run(0, kNumCells, {.resume = true}, context_of(0.2));
  EXPECT_EQ(read_file(out_ / "results.previous.json"), first);
  EXPECT_EQ(read_results(out_).context, context_of(0.2));
}

TEST_F(ResultStoreTest, cut_journal_over_own_results_goes_on_with_those) {
  run(0, 2);
  write_file(out_ / kJournalName, "");
  const auto store = open({.resume = true});
  EXPECT_TRUE(store->has_row(1));
  EXPECT_FALSE(store->has_row(2));
}

TEST_F(ResultStoreTest, resume_over_an_input_that_changed_is_refused) {
  const auto context = [](const char* hash, std::int64_t time) {
    Json result = context_of(0.1);
    result["inputs"] = Json::array(
        {{{"name", "in"}, {"facts", {{"hash", hash}}}, {"origin", {{"modified_ns", time}}}}});
    return result;
  };
  for (const std::size_t num_rows : {std::size_t{1}, kNumCells}) {  // with and without a journal
    run(0, num_rows, {}, context("ab", 1));
    EXPECT_THAT(
        message_of<ConfigError>([&] { open({.resume = true}, context("cd", 1)); }),
        AllOf(HasSubstr("input 'in' is not what it was"), HasSubstr("differs in: facts.hash")));
    EXPECT_THAT(message_of<ConfigError>([&] { open({.resume = true}, context("ab", 2)); }),
                HasSubstr("differs in: origin.modified_ns"));
    EXPECT_TRUE(open({.resume = true}, context("ab", 1))->has_row(0));
  }
}

TEST_F(ResultStoreTest, broken_line_in_the_middle_is_an_input_error) {
  { open({})->add(0, finished(0), {}); }
  const std::string whole = read_file(out_ / kJournalName);
  write_file(out_ / kJournalName, whole + "{\"cell\": oops}\n" + "{}\n");
  EXPECT_THAT(message_of<InputError>([&] { open({.resume = true}); }),
              AllOf(HasSubstr(kJournalName), HasSubstr("line 3")));
}

TEST_F(ResultStoreTest, resume_of_a_complete_run_changes_nothing) {
  run(0, kNumCells);
  const std::string json = read_file(out_ / "results.json");
  Json later = context_of(0.1);
  later["started_at"] = "later";
  const auto store = open({.resume = true}, later);
  for (std::size_t cell = 0; cell < kNumCells; ++cell) EXPECT_TRUE(store->has_row(cell));
  store->finish();
  EXPECT_EQ(read_file(out_ / "results.json"), json);
  EXPECT_EQ(num_files(), 2u);
}

TEST_F(ResultStoreTest, resume_without_a_journal_reads_the_result_files) {
  run(0, 2);
  std::filesystem::remove(out_ / kJournalName);
  const auto store = open({.resume = true});
  EXPECT_TRUE(store->has_row(1));
  EXPECT_FALSE(store->has_row(2));
  store->add(2, finished(2), {});
  store->finish();
  EXPECT_EQ(read_results(out_).rows.size(), kNumCells);
}

TEST_F(ResultStoreTest, resume_with_another_config_names_both_hashes_and_the_key) {
  for (const std::size_t num_rows : {std::size_t{1}, kNumCells}) {  // with and without a journal
    run(0, num_rows);
    EXPECT_THAT(message_of<ConfigError>([&] { open({.resume = true}, context_of(0.2)); }),
                AllOf(HasSubstr("hash-of-0.1"), HasSubstr("hash-of-0.2"),
                      HasSubstr("methods[0].tau"), HasSubstr(out_.string())));
  }
}

TEST_F(ResultStoreTest, new_run_keeps_earlier_results_for_one_generation) {
  run(0, kNumCells, {}, context_of(0.1));
  const std::string first = read_file(out_ / "results.json");
  run(0, kNumCells, {}, context_of(0.2));
  EXPECT_EQ(read_file(out_ / "results.previous.json"), first);
  EXPECT_TRUE(exists("results.previous.h5"));
  const std::string second = read_file(out_ / "results.json");
  run(0, kNumCells, {}, context_of(0.3));
  EXPECT_EQ(read_file(out_ / "results.previous.json"), second);
  EXPECT_EQ(num_files(), 4u);
}

TEST_F(ResultStoreTest, new_run_keeps_an_unfinished_journal) {
  { open({})->add(0, finished(0), {}); }
  const std::string journal = read_file(out_ / kJournalName);
  run(0, kNumCells);
  EXPECT_EQ(read_file(out_ / "rows.previous.jsonl"), journal);
}

TEST_F(ResultStoreTest, resume_of_a_second_config_keeps_the_results_of_the_first) {
  run(0, kNumCells, {}, context_of(0.1));
  { open({}, context_of(0.2))->add(0, finished(0), {}); }  // ends without finish()
  run(1, kNumCells, {.resume = true}, context_of(0.2));
  EXPECT_EQ(read_results(out_ / "results.previous.json").context, context_of(0.1));
  EXPECT_EQ(read_results(out_ / "results.json").context, context_of(0.2));
}

TEST_F(ResultStoreTest, run_without_a_row_leaves_earlier_results_in_place) {
  run(0, kNumCells);
  const std::string json = read_file(out_ / "results.json");
  run(0, 0);
  EXPECT_EQ(read_file(out_ / "results.json"), json);
  EXPECT_EQ(num_files(), 2u);
}

TEST_F(ResultStoreTest, outputs_survive_a_resume_and_reach_the_result_file) {
  run(0, 1, {.save_outputs = true});
  EXPECT_TRUE(exists("rows.partial.0.f32"));
  run(1, kNumCells, {.resume = true, .save_outputs = true});
  EXPECT_EQ(num_files(), 2u);
  // Four floats 1, 2, 3, 4 for each of the three rows.
  const std::string bytes = read_file(out_ / "results.h5");
  const std::string output(reinterpret_cast<const char*>(kOutput.data()), 16);
  std::size_t found = 0;
  for (std::size_t at = bytes.find(output); at != std::string::npos;
       at = bytes.find(output, at + 1)) {
    ++found;
  }
  EXPECT_EQ(found, kNumCells);
}

TEST_F(ResultStoreTest, rows_of_an_input_that_changed_are_computed_again) {
  {
    const auto store = open({});
    ResultRow row = finished(0);
    row.input = "another name";
    store->add(0, row, {});
  }
  EXPECT_FALSE(open({.resume = true})->has_row(0));
}

TEST_F(ResultStoreTest, output_that_a_journal_names_elsewhere_is_not_taken) {
  run(0, 1, {.save_outputs = true});
  const std::string secret(16, 's');
  write_file(folder_ / "deep/secret", secret);
  std::string journal = read_file(out_ / kJournalName);
  const std::string own = "rows.partial.0.f32";
  journal.replace(journal.find(own), own.size(), "../secret");
  write_file(out_ / kJournalName, journal);
  // The file of the cell counts, whatever the journal says ...
  run(1, kNumCells, {.resume = true, .save_outputs = true});
  EXPECT_EQ(read_file(out_ / "results.h5").find(secret), std::string::npos);
  // ... and only if it is a file of the right size.
  for (const bool is_link : {false, true}) {
    run(0, 1, {.save_outputs = true});
    std::filesystem::remove(out_ / own);
    if (is_link) std::filesystem::create_symlink("../secret", out_ / own);
    EXPECT_FALSE(open({.resume = true, .save_outputs = true})->has_row(0));
  }
}

TEST_F(ResultStoreTest, journal_that_is_a_link_is_not_written_through) {
  write_file(folder_ / "precious", "");
  std::filesystem::create_directories(out_);
  std::filesystem::create_symlink("../../precious", out_ / kJournalName);
  EXPECT_THROW(open({.resume = true}), ConfigError);
  EXPECT_EQ(read_file(folder_ / "precious"), "");
}

TEST_F(ResultStoreTest, folder_that_moves_is_noticed_at_the_next_row) {
  const auto store = open({});
  store->add(0, finished(0), {});
  std::filesystem::rename(out_, folder_ / "deep/moved");
  EXPECT_THAT(message_of<UnsupportedError>([&] { store->add(1, finished(1), {}); }),
              AllOf(HasSubstr("was moved to"), HasSubstr("deep/moved/rows.partial.jsonl"),
                    HasSubstr("go on there with --resume")));
  EXPECT_THAT(message_of<UnsupportedError>([&] { store->finish(); }), HasSubstr("deep/moved"));
  EXPECT_EQ(read_journal(folder_ / "deep/moved" / kJournalName).entries.size(), 2u);
}

TEST_F(ResultStoreTest, folder_that_goes_away_is_noticed_and_nothing_is_claimed) {
  const auto store = open({});
  store->add(0, finished(0), {});
  std::filesystem::remove_all(out_);
  const std::string message = message_of<UnsupportedError>([&] { store->add(1, finished(1), {}); });
  EXPECT_THAT(message, AllOf(HasSubstr("was removed"), Not(HasSubstr("safe"))));
  EXPECT_THAT(message_of<UnsupportedError>([&] { store->finish(); }), Not(HasSubstr("safe")));
  EXPECT_EQ(store->table().rows.size(), 1u);
}

TEST_F(ResultStoreTest, leftovers_of_a_killed_run_go_away) {
  std::filesystem::create_directories(out_);
  for (const char* name :
       {".results.new.h5.tmp-1-0", ".rows.partial.7.f32.tmp-1-0", "rows.partial.12.f32"}) {
    write_file(out_ / name, "as large as a result");
  }
  run(0, kNumCells);
  EXPECT_EQ(num_files(), 2u);
}

TEST_F(ResultStoreTest, folder_in_use_is_refused) {
  const auto store = open({});
  EXPECT_THAT(message_of<ConfigError>([&] { open({}); }), HasSubstr("another run is writing"));
}

TEST_F(ResultStoreTest, folder_that_is_a_file_is_refused) {
  write_file(folder_ / "deep", "");
  EXPECT_THAT(message_of<ConfigError>([&] { open({}); }), HasSubstr("cannot be made a folder"));
}

// Files may grow to so many bytes while it lives; beyond, writing fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limited = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limited);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_ = {};
};

TEST_F(ResultStoreTest, full_disk_is_found_before_anything_is_computed) {
  const FileSizeLimit limit(4096);
  EXPECT_THROW(open({}), UnsupportedError);
}

TEST_F(ResultStoreTest, disk_that_fills_up_keeps_the_rows_so_far) {
  const auto store = open({});
  store->add(0, finished(0), {});
  ResultRow big = finished(1);
  big.stop_steps.assign(1 << 20, 12345);
  {
    const FileSizeLimit limit(100 << 10);
    EXPECT_THAT(
        message_of<UnsupportedError>([&] { store->add(1, big, {}); }),
        AllOf(HasSubstr(kJournalName), HasSubstr("1 of 3 rows are safe"), HasSubstr("--resume")));
  }
  EXPECT_EQ(read_journal(out_ / kJournalName).entries.size(), 1u);
  store->add(1, finished(1), {});
  EXPECT_EQ(read_journal(out_ / kJournalName).entries.size(), 2u);
}

TEST_F(ResultStoreTest, result_files_that_cannot_be_written_leave_the_earlier_ones) {
  run(0, kNumCells);
  const std::string json = read_file(out_ / "results.json");
  const auto store = open({});
  ResultRow big = finished(0);
  big.stop_steps.assign(1 << 18, 12345);
  store->add(0, big, {});
  {
    const FileSizeLimit limit(100 << 10);
    EXPECT_THAT(message_of<UnsupportedError>([&] { store->finish(); }),
                AllOf(HasSubstr("1 of 3 rows are safe in"), HasSubstr("--resume")));
  }
  EXPECT_EQ(read_file(out_ / "results.json"), json);
  EXPECT_FALSE(exists("results.previous.json"));
  EXPECT_EQ(num_files(), 3u);  // the earlier two and the journal
  store->finish();
  EXPECT_EQ(read_results(out_).rows.size(), 1u);
}

TEST(first_difference, names_the_first_key_that_differs) {
  const auto path = [](const char* a, const char* b) {
    return first_difference(Json::parse(a), Json::parse(b));
  };
  EXPECT_EQ(path(R"({"a": 1, "b": [{"c": 2}]})", R"({"a": 1, "b": [{"c": 3}]})"), "b[0].c");
  EXPECT_EQ(path(R"({"a": 1})", R"({"a": 1, "b": 2})"), "b");
  EXPECT_EQ(path(R"({"a": {"x": 1}})", R"({"a": {}})"), "a.x");
  EXPECT_EQ(path(R"({"a": [1, 2]})", R"({"a": [1]})"), "a");
  EXPECT_EQ(path(R"({"a": 1})", R"({"a": 1})"), "");
}

}  // namespace
}  // namespace s2o
