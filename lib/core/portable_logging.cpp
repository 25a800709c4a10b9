// fmt and spdlog compiled into the binary (S2O_PORTABLE only): Debian has them as shared libraries.
#define FMT_HEADER_ONLY_SOURCE
#include <fmt/format-inl.h>
#include <spdlog/common-inl.h>
