#include "lib/core/line_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

TEST(line_file, lines_are_added_to_what_stays) {
  const TempFolder folder;
  write_file(folder / "x", "one\ntw");
  LineFile lines(folder / "x", LineFile::Open::kExisting);
  lines.truncate(4);
  lines.append("two");
  EXPECT_EQ(read_file(folder / "x"), "one\ntwo\n");
  EXPECT_THAT(message_of<ConfigError>([&] { lines.truncate(100); }), HasSubstr("became shorter"));
}

TEST(line_file, one_process_at_a_time_has_it) {
  const TempFolder folder;
  LineFile first(folder / "x", LineFile::Open::kCreate);
  EXPECT_TRUE(first.lock());
  const LineFile second(folder / "x", LineFile::Open::kExisting);
  EXPECT_FALSE(second.lock());
  std::filesystem::rename(folder / "x", folder / "y");
  EXPECT_THAT(message_of<UnsupportedError>([&] { first.append("a"); }), HasSubstr("was moved to"));
  // Whoever opened it before it was moved has another file than the one of that name.
  first = LineFile(folder / "x", LineFile::Open::kCreate);
  EXPECT_FALSE(second.lock());
  EXPECT_TRUE(first.lock());
}

TEST(line_file, what_no_lines_can_be_added_to_is_refused) {
  const TempFolder folder;
  const auto message = [&](const std::string& name) {
    return message_of<ConfigError>([&] { LineFile(folder / name, LineFile::Open::kCreate); });
  };
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(message("pipe"), HasSubstr("cannot be written"));
  std::filesystem::create_directory(folder / "sub");
  EXPECT_THAT(message("sub"), HasSubstr("cannot be written"));
  write_file(folder / "other", "");
  std::filesystem::create_symlink("other", folder / "link");
  EXPECT_THAT(message("link"), HasSubstr("cannot be written"));
  EXPECT_THAT(message("absent/x"), HasSubstr("cannot be written"));
}

TEST(line_file, a_full_disk_leaves_whole_lines) {
  const TempFolder folder;
  LineFile lines(folder / "x", LineFile::Open::kCreate);
  lines.append("kept");
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{.rlim_cur = 64, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text =
      message_of<UnsupportedError>([&] { lines.append(std::string(1000, 'x')); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(text, HasSubstr("writing failed"));
  EXPECT_EQ(read_file(folder / "x"), "kept\n");
}

}  // namespace
}  // namespace s2o
