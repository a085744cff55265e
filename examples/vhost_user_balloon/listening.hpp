// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/listener.hpp>

#include <cerrno>
#include <cstring>
#include <string>

namespace vhost_user_balloon {

using ballast::vhost_user::file;

/// Why it can't listen there; empty where it can.
[[nodiscard]] inline std::string listen_at(ballast::vhost_user::listener& socket,
                                           const std::string& path) {
  const auto opened = socket.open(path.c_str());
  if (opened) return {};
  if (opened.error() == ballast::error::system_call_failed)
    return path + ": " +
           (errno == EADDRINUSE ? "another process listens there, or it is no socket"
                                : std::strerror(errno));
  return path + ": " + ballast::name(opened.error());
}

} // namespace vhost_user_balloon
