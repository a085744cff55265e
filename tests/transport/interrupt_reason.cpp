// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/transport/interrupt_reason.hpp>

#include <doctest/doctest.h>

namespace {

namespace reason = ballast::interrupt_reason;

TEST_CASE("the reasons of an interrupt are the bits that the specification gives them") {
  CHECK(reason::used_buffer == 1);   // "Used Buffer Notification"
  CHECK(reason::config_change == 2); // "Configuration Change Notification"
}

} // namespace
