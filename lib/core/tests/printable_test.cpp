#include "lib/core/printable.h"

#include <gtest/gtest.h>

namespace s2o {
namespace {

TEST(printable, text_stays_as_it_is) {
  for (const char* text :
       {"", "layer0.safetensors", "Größe \xe2\x89\xa5 7", "\xf0\x9f\x98\x80", "a\\b"}) {
    EXPECT_EQ(printable(text), text);
    EXPECT_TRUE(is_utf8(text));
  }
}

TEST(printable, what_commands_a_terminal_or_ends_a_line_is_escaped) {
  EXPECT_EQ(printable("a\nb\tc\r"), "a\\nb\\tc\\r");
  EXPECT_EQ(printable("\x1b[31mred"), "\\x1b[31mred");
  EXPECT_EQ(printable(std::string_view("\0\x7f", 2)), "\\x00\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b31m");  // CSI as one character
  EXPECT_EQ(printable("two\nlines\x1b", "\n"), "two\nlines\\x1b");
}

TEST(printable, what_is_no_utf8_is_escaped_byte_by_byte) {
  EXPECT_EQ(printable("caf\xe9.h5"), "caf\\xe9.h5");
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xe2\x89"), "\\xe2\\x89");           // cut off
  EXPECT_EQ(printable("\xc0\x80"), "\\xc0\\x80");           // overlong
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_FALSE(is_utf8("caf\xe9.h5"));
}

TEST(json_text, never_fails_on_a_name) {
  EXPECT_EQ(json_text({{"name", "caf\xe9"}}), "{\"name\":\"caf\xef\xbf\xbd\"}");
}

}  // namespace
}  // namespace s2o
