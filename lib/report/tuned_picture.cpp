#include "lib/report/tuned_picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <set>

#include "lib/core/error.h"

namespace s2o {
namespace {

constexpr int kPageMargin = 24;
constexpr int kFontScale = 2;
constexpr int kRowHeight = 22;
constexpr int kCellWidth = 22;
constexpr int kCellHeight = 14;
constexpr int kGap = 48;         // between panels
constexpr int kLabelWidth = 44;  // left of a panel: numbers of layers
constexpr int kHeaderHeight = 2 * kRowHeight + 8;
constexpr int kMinWidth = 560;  // of the legend
constexpr std::int64_t kMaxPixels = std::int64_t{1} << 28;

// Dark ends of hues that are told apart without colour vision (Okabe and Ito); dense is grey.
constexpr Color kDense{70, 70, 70};
constexpr std::array<Color, 7> kHues = {
    Color{0, 90, 160},  Color{190, 80, 0},   Color{0, 120, 90}, Color{160, 80, 130},
    Color{150, 130, 0}, Color{60, 140, 200}, Color{120, 60, 20}};

Color lighter(Color color, double share) {
  const auto mix = [share](std::uint8_t x) {
    return static_cast<std::uint8_t>(x + share * (235 - x) + 0.5);
  };
  return {mix(color.red), mix(color.green), mix(color.blue)};
}

// A colour for every setting that a head takes.
std::map<int, Color> colors_of(const TunedFile& file) {
  std::set<int> taken;
  for (const TunedLength& length : file.lengths) {
    for (const std::vector<int>& heads : length.layers) taken.insert(heads.begin(), heads.end());
  }
  std::map<const Method*, std::vector<int>> used;
  std::vector<const Method*> methods;  // in the order of the file
  for (const int i : taken) {
    const Method* const method = file.settings[static_cast<std::size_t>(i)].method;
    if (used[method].empty()) methods.push_back(method);
    used[method].push_back(i);
  }
  const Method* const dense = &find_method("dense");
  std::map<int, Color> colors;
  std::size_t hue = 0;
  for (const Method* method : methods) {
    const Color dark = method == dense ? kDense : kHues[hue++ % kHues.size()];
    const std::vector<int>& settings = used[method];
    for (std::size_t i = 0; i < settings.size(); ++i) {
      colors[settings[i]] =
          lighter(dark, 0.85 * static_cast<double>(i) / static_cast<double>(settings.size()));
    }
  }
  return colors;
}

std::string legend_text(const TunedFile& file, int index) {
  const TunedSetting& setting = file.settings[static_cast<std::size_t>(index)];
  const MethodInfo& info = setting.method->info();
  std::string text = info.name;
  if (!info.knob.empty()) {
    text += fmt::format(" {}={}", info.knob, setting.params->to_json()[info.knob].dump());
  }
  text += ":";
  for (const TunedLength& length : file.lengths) {
    std::ptrdiff_t heads = 0;
    for (const std::vector<int>& layer : length.layers) heads += std::ranges::count(layer, index);
    text += fmt::format(" {}", heads);
  }
  return text + " heads";
}

}  // namespace

Image tuned_picture(const TunedFile& file) {
  const std::map<int, Color> colors = colors_of(file);
  const TunedModel& model = file.model;
  // In 64 bits: nobody has looked at how many heads, lengths and settings a file has.
  const std::int64_t panel_width = kLabelWidth + std::int64_t{model.num_q_heads} * kCellWidth;
  const auto panels = static_cast<std::int64_t>(file.lengths.size());
  const std::int64_t panel_height = kHeaderHeight + std::int64_t{model.num_layers} * kCellHeight;
  const std::int64_t legend_height = (std::ssize(colors) + 1) * kRowHeight;
  const std::int64_t width = std::max<std::int64_t>(
      2 * kPageMargin + panels * panel_width + (panels - 1) * kGap, kMinWidth);
  const std::int64_t height = 2 * kPageMargin + panel_height + kRowHeight + legend_height;
  if (width > kMaxPixels / height) {
    throw UnsupportedError(fmt::format(
        "{}: a picture of {} lengths, {} layers, {} heads and {} settings has {} x {} pixels, "
        "expected at most {} pixels",
        model.name, panels, model.num_layers, model.num_q_heads, colors.size(), width, height,
        kMaxPixels));
  }
  Image image(static_cast<int>(width), static_cast<int>(height));
  int left = kPageMargin + kLabelWidth;
  for (const TunedLength& length : file.lengths) {
    const int top = kPageMargin + kHeaderHeight;
    image.text(left, kPageMargin, fmt::format("{} tokens", length.seqlen), kFontScale, kInk);
    image.text(left - kLabelWidth, kPageMargin + kRowHeight, "layers, query heads", kFontScale,
               kInk);
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const int y = top + layer * kCellHeight;
      if (layer % 4 == 0) {
        image.text(left - kLabelWidth, y, std::to_string(layer), kFontScale, kInk);
      }
      for (int head = 0; head < model.num_q_heads; ++head) {
        const int setting =
            length.layers[static_cast<std::size_t>(layer)][static_cast<std::size_t>(head)];
        image.fill(left + head * kCellWidth, y, kCellWidth - 1, kCellHeight - 1,
                   colors.at(setting));
      }
    }
    left += static_cast<int>(panel_width) + kGap;
  }
  auto y = static_cast<int>(kPageMargin + panel_height + kRowHeight);
  for (const auto& [setting, color] : colors) {
    image.fill(kPageMargin, y, kCellWidth, kRowHeight - 6, color);
    image.text(kPageMargin + kCellWidth + 8, y, legend_text(file, setting), kFontScale, kInk);
    y += kRowHeight;
  }
  return image;
}

}  // namespace s2o
