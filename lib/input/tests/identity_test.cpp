#include "lib/input/identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::ElementsAre;

std::vector<std::string> told_apart(std::vector<std::string> names,
                                    const std::vector<InputIdentity>& identities) {
  std::vector<NamedInput> named;
  for (std::size_t i = 0; i < names.size(); ++i) named.push_back({&names[i], 0, 8, &identities[i]});
  tell_names_apart(named);
  return names;
}

TEST(InputIdentity, id_is_of_the_facts_alone) {
  const InputIdentity here = {.facts = {{"hash", "ab"}}, .origin = {{"path", "here"}}};
  const InputIdentity there = {.facts = {{"hash", "ab"}}, .origin = {{"path", "there"}}};
  const InputIdentity other = {.facts = {{"hash", "cd"}}, .origin = {{"path", "here"}}};
  EXPECT_EQ(here.id(), there.id());
  EXPECT_NE(here.id(), other.id());
}

TEST(tell_names_apart, names_that_differ_stay_as_they_are) {
  EXPECT_THAT(told_apart({"a", "b"}, {{.facts = {{"seed", 0}}}, {.facts = {{"seed", 1}}}}),
              ElementsAre("a", "b"));
}

TEST(tell_names_apart, one_name_grows_by_what_differs_and_by_no_more) {
  const auto of = [](int strength, int heads) {
    return InputIdentity{
        .facts = {{"pattern", "stripes"}, {"heads", heads}, {"strength", strength}}};
  };
  EXPECT_THAT(told_apart({"s", "s", "s"}, {of(2, 4), of(5, 4), of(8, 4)}),
              ElementsAre("s strength=2", "s strength=5", "s strength=8"));
  EXPECT_THAT(told_apart({"s", "s", "s"}, {of(2, 4), of(5, 4), of(2, 8)}),
              ElementsAre("s heads=4 strength=2", "s heads=4 strength=5", "s heads=8 strength=2"));
}

TEST(tell_names_apart, a_path_says_more_than_a_hash) {
  EXPECT_THAT(told_apart({"d", "d"}, {{.facts = {{"hash", "1"}}, .origin = {{"path", "A/x"}}},
                                      {.facts = {{"hash", "2"}}, .origin = {{"path", "B/x"}}}}),
              ElementsAre("d path=A/x", "d path=B/x"));
}

TEST(tell_names_apart, the_same_input_twice_keeps_one_name) {
  const InputIdentity same = {.facts = {{"seed", 0}}};
  EXPECT_THAT(told_apart({"a", "a"}, {same, same}), ElementsAre("a", "a"));
}

TEST(tell_names_apart, layers_and_lengths_are_apart_already) {
  std::string first = "a", second = "a";
  const InputIdentity one = {.facts = {{"seed", 0}}};
  const InputIdentity two = {.facts = {{"seed", 1}}};
  tell_names_apart({{&first, 0, 8, &one}, {&second, 1, 8, &two}});
  EXPECT_EQ(first, "a");
  EXPECT_EQ(second, "a");
}

}  // namespace
}  // namespace s2o
