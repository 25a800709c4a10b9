#include "lib/core/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

TEST(atomic_file, commit_replaces_the_old_file) {
  const TempFolder folder;
  write_file(folder / "x", "old");
  AtomicFile file(folder / "x");
  file.write("new ");
  EXPECT_EQ(read_file(folder / "x"), "old");
  file.write("text");
  file.commit();
  EXPECT_EQ(read_file(folder / "x"), "new text");
}

TEST(atomic_file, without_commit_nothing_changes) {
  const TempFolder folder;
  write_file(folder / "x", "old");
  { AtomicFile(folder / "x").write("new"); }
  EXPECT_EQ(read_file(folder / "x"), "old");
  std::filesystem::remove(folder / "x");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(atomic_file, two_writers_of_one_path_do_not_disturb_each_other) {
  const TempFolder folder;
  AtomicFile first(folder / "x");
  AtomicFile second(folder / "x");
  first.write("first");
  second.write("second");
  second.commit();
  first.commit();
  EXPECT_EQ(read_file(folder / "x"), "first");
}

TEST(atomic_file, leftovers_of_killed_writers_go_away_and_no_others) {
  const TempFolder folder;
  // No process holds these.
  write_file(folder / ".x.tmp-1-0", "left by a process that was killed");
  write_file(folder / ".x.tmp-999999-3", "and by another");
  write_file(folder / ".y.tmp-1-0", "of another file");
  write_file(folder / ".x.tmp-notes", "no temporary file of ours");
  AtomicFile first(folder / "x");
  EXPECT_FALSE(std::filesystem::exists(folder / ".x.tmp-1-0"));
  EXPECT_FALSE(std::filesystem::exists(folder / ".x.tmp-999999-3"));
  EXPECT_TRUE(std::filesystem::exists(folder / ".y.tmp-1-0"));
  EXPECT_TRUE(std::filesystem::exists(folder / ".x.tmp-notes"));
  first.write("first");
  remove_leftovers(folder.path());
  EXPECT_FALSE(std::filesystem::exists(folder / ".y.tmp-1-0"));
  EXPECT_TRUE(std::filesystem::exists(folder / ".x.tmp-notes"));
  first.commit();
  EXPECT_EQ(read_file(folder / "x"), "first");
}

TEST(atomic_file, missing_folder_and_folder_as_target_are_config_errors) {
  const TempFolder folder;
  EXPECT_THAT(message_of<ConfigError>([&] { AtomicFile(folder / "no/x"); }),
              HasSubstr("no/x: cannot be written: no folder '"));
  EXPECT_THAT(message_of<ConfigError>([&] { AtomicFile(folder.path()); }),
              HasSubstr("is a folder"));
  EXPECT_THAT(message_of<ConfigError>([] { AtomicFile(""); }), HasSubstr("empty name"));
}

TEST(atomic_file, full_disk_is_reported_and_leaves_nothing) {
  const TempFolder folder;
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 1000, .rlim_max = old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of<UnsupportedError>([&] {
    AtomicFile file(folder / "x");
    file.write(std::string(2000, 'x'));
    file.commit();
  });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("x: writing failed with 1000 bytes to go"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(atomic_file, more_than_the_disk_holds_names_needed_and_free_bytes) {
  const TempFolder folder;
  EXPECT_NO_THROW(require_disk_space(folder / "x", 1));
  EXPECT_THAT(message_of<UnsupportedError>(
                  [&] { require_disk_space(folder / "x", std::uint64_t{1} << 60); }),
              HasSubstr("x: needs 1152921504606846976 bytes"));
}

}  // namespace
}  // namespace s2o
