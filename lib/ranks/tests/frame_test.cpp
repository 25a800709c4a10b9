#include "lib/ranks/frame.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "lib/core/error.h"
#include "lib/core/failure.h"

namespace s2o {
namespace {

TEST(frame, survives_its_encoding) {
  const Frame frame = {
      .kind = FrameKind::kRow, .json = {{"cell", 7}}, .bytes = std::string("\0\n\xff", 3)};
  const Frame back = decode_frame(encode_frame(frame));
  EXPECT_EQ(back.kind, frame.kind);
  EXPECT_EQ(back.json, frame.json);
  EXPECT_EQ(back.bytes, frame.bytes);
}

TEST(frame, what_is_cut_off_is_an_error) {
  const std::string text = encode_frame({.kind = FrameKind::kRow, .json = {{"cell", 7}}});
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_THROW(decode_frame(text.substr(0, size)), Error) << size;
  }
}

TEST(frame_socket, carries_large_frames_and_says_when_the_other_end_is_gone) {
  int ends[2] = {};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  FrameSocket here(ends[0]);
  std::thread there([fd = ends[1]] {
    FrameSocket socket(fd);
    EXPECT_TRUE(socket.send({.kind = FrameKind::kRow, .bytes = std::string(4 << 20, 'x')}));
  });
  const std::optional<Frame> frame = here.receive();
  there.join();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->bytes.size(), std::size_t{4 << 20});
  EXPECT_FALSE(here.receive());
  EXPECT_FALSE(here.send({.kind = FrameKind::kAlive}));
}

TEST(failure, keeps_its_type_and_gets_a_prefix) {
  const auto json = failure_to_json(std::make_exception_ptr(UnsupportedError("no GPU")));
  try {
    std::rethrow_exception(failure_from_json(json, "rank 3: "));
  } catch (const UnsupportedError& error) {
    EXPECT_STREQ(error.what(), "rank 3: no GPU");
  }
}

}  // namespace
}  // namespace s2o
