#include "lib/report/image.h"

#include <fmt/format.h>
#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "lib/core/atomic_file.h"
#include "lib/core/error.h"
#include "lib/report/bitmap_font.h"

namespace s2o {
namespace {

// Viridis at 17 equal steps (matplotlib's values, public domain); linear in between.
constexpr std::array<Color, 17> kViridis = {{{68, 1, 84},
                                             {72, 24, 106},
                                             {71, 45, 123},
                                             {66, 64, 134},
                                             {59, 82, 139},
                                             {51, 99, 141},
                                             {44, 114, 142},
                                             {38, 130, 142},
                                             {33, 145, 140},
                                             {31, 160, 136},
                                             {40, 174, 128},
                                             {63, 188, 115},
                                             {94, 201, 98},
                                             {132, 212, 75},
                                             {173, 220, 48},
                                             {216, 226, 25},
                                             {253, 231, 37}}};
constexpr std::array<Color, 3> kBlues = {{{255, 255, 255}, {96, 150, 205}, {8, 48, 107}}};

std::uint8_t mix(std::uint8_t a, std::uint8_t b, double weight) {
  return static_cast<std::uint8_t>(std::lround((1.0 - weight) * a + weight * b));
}

template <std::size_t kSize>
Color interpolate(const std::array<Color, kSize>& colors, double value) {
  const double position = value * static_cast<double>(kSize - 1);
  const std::size_t below = std::min(static_cast<std::size_t>(position), kSize - 2);
  const double weight = position - static_cast<double>(below);
  const Color& a = colors[below];
  const Color& b = colors[below + 1];
  return {mix(a.red, b.red, weight), mix(a.green, b.green, weight), mix(a.blue, b.blue, weight)};
}

png_image rgb_header(int width, int height) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(width);
  header.height = static_cast<png_uint_32>(height);
  header.format = PNG_FORMAT_RGB;
  return header;
}

static_assert(sizeof(Color) == 3, "pixels are written as they lie in memory");

}  // namespace

Color map_color(ColorMap map, double value) {
  const double cut = std::isnan(value) ? 0.0 : std::clamp(value, 0.0, 1.0);
  return map == ColorMap::kMass ? interpolate(kViridis, cut) : interpolate(kBlues, cut);
}

Image::Image(int width, int height, Color background)
    : width_(width),
      height_(height),
      pixels_(static_cast<std::size_t>(width) * static_cast<std::size_t>(height), background) {}

void Image::set(int x, int y, Color color) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) return;
  pixels_[index(x, y)] = color;
}

void Image::fill(int x, int y, int width, int height, Color color) {
  for (int row = y; row < y + height; ++row) {
    for (int column = x; column < x + width; ++column) set(column, row, color);
  }
}

void Image::frame(int x, int y, int width, int height, Color color) {
  fill(x - 1, y - 1, width + 2, 1, color);
  fill(x - 1, y + height, width + 2, 1, color);
  fill(x - 1, y, 1, height, color);
  fill(x + width, y, 1, height, color);
}

void Image::text(int x, int y, const std::string& text, int scale, Color color) {
  for (char character : text) {
    const auto rows = glyph_rows(character);
    for (int row = 0; row < kGlyphHeight; ++row) {
      for (int column = 0; column < kGlyphWidth; ++column) {
        if (!(rows[static_cast<std::size_t>(row)] >> (kGlyphWidth - 1 - column) & 1)) continue;
        fill(x + column * scale, y + row * scale, scale, scale, color);
      }
    }
    x += kGlyphAdvance * scale;
  }
}

void Image::write_png(const std::filesystem::path& path) const {
  png_image header = rgb_header(width_, height_);
  png_alloc_size_t num_bytes = 0;
  // The first call counts the bytes, the second writes them.
  if (png_image_write_to_memory(&header, nullptr, &num_bytes, 0, pixels_.data(), 0, nullptr)) {
    std::vector<std::uint8_t> bytes(num_bytes);
    if (png_image_write_to_memory(&header, bytes.data(), &num_bytes, 0, pixels_.data(), 0,
                                  nullptr)) {
      AtomicFile file(path);
      file.write(bytes.data(), num_bytes);
      file.commit();
      return;
    }
  }
  throw Error(fmt::format("{}: cannot encode {} x {} pixels: {}", path.string(), width_, height_,
                          header.message));
}

Image Image::read_png(const std::filesystem::path& path) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&header, path.c_str())) {
    throw InputError(fmt::format("{}: {}", path.string(), header.message));
  }
  header.format = PNG_FORMAT_RGB;
  Image image(static_cast<int>(header.width), static_cast<int>(header.height));
  if (!png_image_finish_read(&header, nullptr, image.pixels_.data(), 0, nullptr)) {
    throw InputError(fmt::format("{}: {}", path.string(), header.message));
  }
  return image;
}

int text_width(const std::string& text, int scale) {
  return static_cast<int>(text.size()) * kGlyphAdvance * scale;
}

}  // namespace s2o
