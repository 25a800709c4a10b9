#include "lib/core/isolated.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/core/memory.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;

constexpr std::uint64_t kSeconds = 60;

TEST(isolated, result_and_shared_memory_come_back) {
  const std::string long_text(1'000'000, 'x');
  const auto shared = allocate_shared("x", 4);
  int local = 1;
  EXPECT_EQ(run_isolated("x", kSeconds,
                         [&] {
                           shared.get()[3] = std::byte{7};
                           local = 2;
                           return long_text;
                         }),
            long_text);
  EXPECT_EQ(shared.get()[3], std::byte{7});
  EXPECT_EQ(local, 1);
}

TEST(isolated, errors_keep_their_type_and_message) {
  EXPECT_EQ(message_of<InputError>([] {
              run_isolated("x", kSeconds, []() -> std::string { throw InputError("bad"); });
            }),
            "bad");
  EXPECT_EQ(message_of<UnsupportedError>([] {
              run_isolated("x", kSeconds, []() -> std::string { throw UnsupportedError("big"); });
            }),
            "big");
}

TEST(isolated, death_of_the_child_is_an_input_error) {
  const auto death_by = [](int signal) {
    return message_of<InputError>([signal] {
      run_isolated("file.h5", kSeconds, [signal]() -> std::string {
        std::signal(signal, SIG_DFL);  // sanitizers handle some of them
        std::raise(signal);
        return "";
      });
    });
  };
  EXPECT_THAT(death_by(SIGSEGV), HasSubstr("file.h5: reading crashes (Segmentation fault)"));
  EXPECT_THAT(death_by(SIGABRT), HasSubstr("file.h5: reading crashes (Aborted)"));
  EXPECT_THAT(death_by(SIGXCPU), HasSubstr("file.h5: reading takes for ever"));
  EXPECT_THAT(message_of<InputError>([] {
                run_isolated("file.h5", kSeconds, []() -> std::string { std::_Exit(3); });
              }),
              HasSubstr("no answer"));
}

TEST(isolated, cancellation_ends_the_wait) {
  g_cancel_requested = true;
  EXPECT_THROW(run_isolated("x", kSeconds, [] { return std::string("done"); }), InterruptedError);
  g_cancel_requested = false;
}

TEST(memory, more_than_there_is_names_needed_and_free_bytes) {
  EXPECT_NO_THROW(require_memory(1, "x"));
  EXPECT_GT(available_memory_bytes(), 0u);
  EXPECT_THAT(message_of<UnsupportedError>([] { require_memory(std::uint64_t{1} << 60, "x.h5"); }),
              HasSubstr("x.h5: needs 1152921504606846976 bytes of memory"));
}

}  // namespace
}  // namespace s2o
