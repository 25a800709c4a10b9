// RGB pictures: pixels, colour maps, labels, PNG files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace s2o {

struct Color {
  std::uint8_t red = 0;
  std::uint8_t green = 0;
  std::uint8_t blue = 0;
  bool operator==(const Color&) const = default;
};

inline constexpr Color kWhite{255, 255, 255};
inline constexpr Color kInk{32, 32, 32};

enum class ColorMap {
  kMass,   // viridis: dark = little, bright = much; perceptually uniform
  kShare,  // white to deep blue: lightness falls steadily
};
// `value` is cut to [0, 1].
Color map_color(ColorMap map, double value);

class Image {
 public:
  Image(int width, int height, Color background = kWhite);

  int width() const { return width_; }
  int height() const { return height_; }
  Color at(int x, int y) const { return pixels_[index(x, y)]; }
  // Pixels outside the picture are left out.
  void set(int x, int y, Color color);
  void fill(int x, int y, int width, int height, Color color);
  // One pixel wide, outside the given area.
  void frame(int x, int y, int width, int height, Color color);
  // Top left corner at (x, y); each font pixel is scale x scale.
  void text(int x, int y, const std::string& text, int scale, Color color);

  // ConfigError when the file cannot be created, UnsupportedError when the disk is full. Written
  // beside `path`, then renamed.
  void write_png(const std::filesystem::path& path) const;
  // InputError when the file is no readable PNG.
  static Image read_png(const std::filesystem::path& path);

 private:
  std::size_t index(int x, int y) const {
    return static_cast<std::size_t>(y) * static_cast<std::size_t>(width_) +
           static_cast<std::size_t>(x);
  }

  int width_ = 0;
  int height_ = 0;
  std::vector<Color> pixels_;
};

// Width in pixels of a text of image.text().
int text_width(const std::string& text, int scale);

}  // namespace s2o
