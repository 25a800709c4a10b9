// What ranks say to each other: a kind, a JSON object, and raw bytes where outputs are sent.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace s2o {

enum class FrameKind : std::uint32_t {
  // From a worker to rank 0.
  kJoin,  // who it is and what it was asked to run
  kRow,   // a finished cell; asks for the next one
  kDone,  // its summary; it ends
  kFail,  // why it ends without one
  // From the process that minds a worker to rank 0.
  kDied,
  // From rank 0 to a worker.
  kCell,  // the cell to compute next
  kEnd,   // there is none left
  // To and from the minding processes.
  kPlace,  // rank and size, for the worker
  kAlive,
  kBye,  // all is over
};

struct Frame {
  FrameKind kind = FrameKind::kAlive;
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  std::string bytes;
};

std::string encode_frame(const Frame& frame);
// Error for anything that encode_frame did not make.
Frame decode_frame(const std::string& text);

// One end of a stream socket. Frames are whole or not there.
class FrameSocket {
 public:
  explicit FrameSocket(int fd) : fd_(fd) {}
  ~FrameSocket();
  FrameSocket(FrameSocket&& other) noexcept;
  FrameSocket& operator=(FrameSocket&&) = delete;

  int fd() const { return fd_; }
  // False when the other end is gone.
  bool send(const Frame& frame);
  bool send_text(const std::string& encoded);
  // Waits. The encoded frame; nothing when the other end is gone.
  std::optional<std::string> receive_text();
  std::optional<Frame> receive();
  // Whether something can be received within that time.
  bool wait(int milliseconds) const;

 private:
  int fd_ = -1;
};

}  // namespace s2o
