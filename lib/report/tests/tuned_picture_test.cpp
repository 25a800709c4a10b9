#include "lib/report/tuned_picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::message_of;

// Dense everywhere.
TunedFile file_of(int num_layers, int num_heads, int num_lengths) {
  const Method& dense = find_method("dense");
  TunedFile file{.model = {.name = "m", .num_layers = num_layers, .num_q_heads = num_heads},
                 .settings = {{&dense, std::make_shared<const ParamSet>(dense.info().params)}}};
  for (int i = 0; i < num_lengths; ++i) {
    file.lengths.push_back({.seqlen = 1024 * (i + 1),
                            .layers = std::vector<std::vector<int>>(
                                static_cast<std::size_t>(num_layers),
                                std::vector<int>(static_cast<std::size_t>(num_heads)))});
  }
  return file;
}

TEST(tuned_picture, lengths_stand_beside_each_other) {
  const int one = tuned_picture(file_of(4, 32, 1)).width();
  const int two = tuned_picture(file_of(4, 32, 2)).width();
  const int three = tuned_picture(file_of(4, 32, 3)).width();
  EXPECT_EQ(three - two, two - one);
  EXPECT_GT(three, two);
}

TEST(tuned_picture, more_than_a_picture_holds_is_said) {
  EXPECT_THAT(message_of<UnsupportedError>([] { tuned_picture(file_of(1, 1 << 20, 2)); }),
              HasSubstr("a picture of 2 lengths, 1 layers, 1048576 heads and 1 settings has"));
}

}  // namespace
}  // namespace s2o
