// A 5 x 8 pixel font for labels in pictures, so that the binary needs no font file.
#pragma once

#include <array>
#include <cstdint>

namespace s2o {

inline constexpr int kGlyphWidth = 5;
inline constexpr int kGlyphHeight = 8;   // the last row is for descenders
inline constexpr int kGlyphAdvance = 6;  // one empty column between characters

// Rows from top to bottom; bit 4 is the leftmost pixel. Characters that the font lacks are a box.
std::array<std::uint8_t, kGlyphHeight> glyph_rows(char character);

}  // namespace s2o
