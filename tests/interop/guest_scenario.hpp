// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// What the scenarios of guest_test.cpp share: one guest with our device, its shell, and the checks.

#include <ballast/balloon/device_options.hpp>
#include <ballast/balloon/statistics.hpp>

#include "guest.hpp"
#include "pci_proxy.hpp"

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace interop {

inline constexpr int boot_time = 90'000, patience = 60'000; // milliseconds
inline constexpr std::uint64_t mebibyte = 1 << 20;

/// Prints a line for each check: "ok NAME, FEATURE: what holds".
class checks {
 public:
  explicit checks(std::string name) : name_(std::move(name)) {}

  /// What the next checks are about: a row of the support matrix. What it was before.
  std::string about(std::string feature) { return std::exchange(feature_, std::move(feature)); }
  bool check(const std::string& what, bool holds, const std::string& otherwise = {});
  bool check_equal(const std::string& what, std::uint64_t found, std::uint64_t expected);
  /// `tolerance` either way.
  bool check_near(const std::string& what, std::uint64_t found, std::uint64_t expected,
                  std::uint64_t tolerance);
  [[nodiscard]] bool has_failed() const { return has_failed_; }

 private:
  std::string name_, feature_ = "boot";
  bool has_failed_ = false;
};

/// How the guest and its device are set up.
struct set_up {
  std::string kernel, directory; ///< of `guest_options`
  bool is_packed = false;
  std::string interrupts; ///< msi-x; intx: the guest uses none; no-msi-x: the device has none
  std::string transport;  ///< modern; transitional: the driver may choose; legacy: it is told to
  std::string kernel_options = {};
  unsigned memory = 448; ///< MiB
};

[[nodiscard]] guest_options guest_of(const set_up& from);
/// A device with these features, and those of the set-up.
[[nodiscard]] pci_proxy::options device_of(const set_up& from, ballast::feature_set balloon);
/// What `dmesg` said in a good run.
void check_messages(checks& to, const std::string& said);

/// The process that serves the device is killed, over and over. False where a check failed.
[[nodiscard]] bool run_resume(const set_up& from, const std::string& name);

class scenario : public checks {
 public:
  scenario(const set_up& from, std::string name);

  [[nodiscard]] bool is_6_1() const { return is_6_1_; }
  [[nodiscard]] bool is_legacy() const { return set_up_.transport == "legacy"; }

  /// Up to the shell and the driver.
  bool boots(const ballast::feature_set& expected);
  /// Takes the device out of the guest's PCI bus and puts another one in; its driver starts.
  bool replug(const ballast::feature_set& offered);

  /// Runs a line in the guest, which the device serves meanwhile; -1: it did not end in time.
  int run(const std::string& line);
  [[nodiscard]] const std::string& text() const { return guest_.text(); }
  std::uint64_t ask_number(const std::string& line);
  /// /proc/vmstat and /proc/meminfo.
  std::map<std::string, std::uint64_t> counters();
  /// /proc/meminfo, bytes.
  std::uint64_t memory(const std::string& name) { return counters()[name]; }
  /// A program that takes memory and checks it: its exit status.
  int hog(std::uint64_t bytes) { return run("hog " + std::to_string(bytes / mebibyte)); }

  /// A fresh reply to a request; one without values if none comes.
  ballast::balloon::snapshot statistics();

  void set_target(std::uint32_t pages) { server_.perform(device().set_target(pages)); }
  bool settles_at(std::uint32_t pages);
  bool check_settles(const std::string& what, std::uint32_t pages);

  /// At the end: what no good run shows, and that the guest powers off.
  void check_clean();

  guest& linux() { return guest_; }
  pci_proxy& server() { return server_; }
  pci_proxy::device_type& device() { return server_.device(); }
  guest_ram& ram() { return server_.ram(); }
  template <class Condition> bool run_until(Condition is_done, int milliseconds = patience) {
    return server_.run_until(is_done, milliseconds);
  }

 private:
  void check_device();

  set_up set_up_;
  bool is_6_1_;
  guest guest_;
  pci_proxy server_;
};

} // namespace interop
