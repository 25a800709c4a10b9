#include "lib/ranks/frame.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lib/core/error.h"

namespace s2o {
namespace {

struct Header {
  std::uint32_t kind = 0;
  std::uint64_t json_bytes = 0;
  std::uint64_t raw_bytes = 0;
};

bool write_all(int fd, const char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t done = ::send(fd, data, bytes, MSG_NOSIGNAL);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    data += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

bool read_all(int fd, char* data, std::size_t bytes) {
  while (bytes > 0) {
    const ssize_t done = ::read(fd, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    data += done;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

}  // namespace

std::string encode_frame(const Frame& frame) {
  // Texts of errors may hold bytes that are no UTF-8.
  const std::string json =
      frame.json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  const Header header = {.kind = static_cast<std::uint32_t>(frame.kind),
                         .json_bytes = json.size(),
                         .raw_bytes = frame.bytes.size()};
  std::string text(sizeof(header), '\0');
  std::memcpy(text.data(), &header, sizeof(header));
  return text + json + frame.bytes;
}

Frame decode_frame(const std::string& text) {
  Header header;
  if (text.size() < sizeof(header)) throw Error("ranks: a message is cut off");
  std::memcpy(&header, text.data(), sizeof(header));
  const std::size_t rest = text.size() - sizeof(header);
  if (header.json_bytes > rest || header.raw_bytes != rest - header.json_bytes) {
    throw Error("ranks: a message is cut off");
  }
  Frame frame;
  frame.kind = static_cast<FrameKind>(header.kind);
  const char* const json = text.data() + sizeof(header);
  frame.json = nlohmann::ordered_json::parse(json, json + header.json_bytes, nullptr, false);
  if (frame.json.is_discarded()) throw Error("ranks: a message is no JSON");
  frame.bytes.assign(json + header.json_bytes, header.raw_bytes);
  return frame;
}

FrameSocket::~FrameSocket() {
  if (fd_ >= 0) ::close(fd_);
}
FrameSocket::FrameSocket(FrameSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

bool FrameSocket::send(const Frame& frame) { return send_text(encode_frame(frame)); }

bool FrameSocket::send_text(const std::string& encoded) {
  return write_all(fd_, encoded.data(), encoded.size());
}

std::optional<std::string> FrameSocket::receive_text() {
  Header header;
  std::string text(sizeof(header), '\0');
  if (!read_all(fd_, text.data(), sizeof(header))) return std::nullopt;
  std::memcpy(&header, text.data(), sizeof(header));
  text.resize(sizeof(header) + header.json_bytes + header.raw_bytes);
  if (!read_all(fd_, text.data() + sizeof(header), text.size() - sizeof(header))) {
    return std::nullopt;
  }
  return text;
}

std::optional<Frame> FrameSocket::receive() {
  const std::optional<std::string> text = receive_text();
  if (!text) return std::nullopt;
  return decode_frame(*text);
}

bool FrameSocket::wait(int milliseconds) const {
  pollfd poll = {.fd = fd_, .events = POLLIN, .revents = 0};
  return ::poll(&poll, 1, milliseconds) > 0;
}

}  // namespace s2o
