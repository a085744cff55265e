// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "../qemu/process.hpp"
#include "../qemu/qmp.hpp"
#include "../qemu/qtest.hpp"
#include "../qemu/socket.hpp"
#include "options.hpp"

#include <ballast/memory/guest_memory.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace qtest_driver {

/// Memory that QEMU is given as a file.
class shared_file {
 public:
  explicit shared_file(std::size_t size) noexcept : fd_(memfd_create("guest", MFD_CLOEXEC)) {
    if (!fd_.is_open() || ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) return;
    void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (at != MAP_FAILED) bytes_ = {static_cast<std::byte*>(at), size};
  }
  ~shared_file() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  shared_file(const shared_file&) = delete;
  shared_file& operator=(const shared_file&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(fd()); }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

 private:
  qemu::descriptor fd_;
  std::span<std::byte> bytes_;
};

/// A machine of QEMU whose processor sleeps, with a balloon device, for as long as this object is.
///
/// Debian's QEMU has no accelerator "qtest", but a qtest socket with every accelerator. So the
/// processor runs the shortest firmware there is, and the machine's clocks run.
class machine {
 public:
  static constexpr std::uint64_t ram_bytes = 64 << 20;
  static constexpr ballast::guest_address ram_begin = 1 << 20; ///< below are holes
  static constexpr const char* device_id = "balloon";

  explicit machine(const options& chosen)
      : ram_(ram_bytes), firmware_(firmware_bytes),
        sockets_{qemu::socket_pair::make(), qemu::socket_pair::make()}, program_(start(chosen)),
        monitor_(std::move(sockets_[0].ours)), cpu_(std::move(sockets_[1].ours)) {}

  /// Why it does not run, in one line; empty if it does.
  [[nodiscard]] std::string error() const {
    if (!program_.error().empty()) return program_.error();
    if (monitor_.is_open() && cpu_.is_open()) return {};
    const std::string said = this->said();
    std::string text = monitor_.is_open() ? cpu_.error() : monitor_.error();
    if (!said.empty()) text += ": " + said;
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
  }
  /// The end of what it wrote to its standard error.
  [[nodiscard]] std::string said() const { return program_.errors(); }

  [[nodiscard]] qemu::qmp& monitor() noexcept { return monitor_; }
  [[nodiscard]] qemu::qtest& cpu() noexcept { return cpu_; }
  [[nodiscard]] std::span<std::byte> ram() const noexcept { return ram_.bytes(); }

  /// Asks QEMU to end; its exit status, as of waitpid(2), if it did.
  std::optional<int> end() {
    (void)monitor_.command("quit");
    return program_.wait(std::chrono::seconds(10));
  }

 private:
  static constexpr std::size_t firmware_bytes = 65536;

  qemu::process start(const options& chosen) {
    // The processor begins 16 bytes before the end: cli; hlt; and back, if anything wakes it.
    constexpr std::array code{std::byte{0xfa}, std::byte{0xf4}, std::byte{0xeb}, std::byte{0xfd}};
    if (ram_.bytes().empty() || firmware_.bytes().empty()) return {};
    for (std::size_t i = 0; i < code.size(); ++i)
      firmware_.bytes()[firmware_bytes - 16 + i] = code[i];

    const int monitor = sockets_[0].theirs.get(), cpu = sockets_[1].theirs.get();
    qemu::launch what{.arguments = {chosen.program, "-accel", "tcg", "-nodefaults",
                                    "-no-user-config", "-display", "none"},
                      .passed = {monitor, cpu, firmware_.fd(), ram_.fd()}};
    const auto add = [&](const char* option, const std::string& value) {
      what.arguments.insert(what.arguments.end(), {option, value});
    };
    add("-bios", firmware_.path());
    add("-m", std::to_string(ram_bytes >> 20) + "M");
    add("-machine", std::string(chosen.is_mmio() ? "microvm" : "q35,pit=off") +
                        (chosen.shares_memory ? ",memory-backend=ram" : ""));
    if (chosen.shares_memory)
      add("-object", "memory-backend-file,id=ram,share=on,mem-path=" + ram_.path() +
                         ",size=" + std::to_string(ram_bytes));
    add("-chardev", "socket,id=monitor,fd=" + std::to_string(monitor));
    add("-mon", "chardev=monitor,mode=control");
    add("-chardev", "socket,id=qtest,fd=" + std::to_string(cpu));
    add("-qtest", "chardev:qtest"); // QEMU wants that very id
    add("-qtest-log", "none");
    add("-object", "iothread,id=hints");
    if (chosen.is_mmio())
      add("-global",
          std::string("virtio-mmio.force-legacy=") + (chosen.is_legacy() ? "on" : "off"));
    add("-device", device(chosen));
    qemu::process made = qemu::process::start(what);
    for (qemu::socket_pair& one : sockets_) one.theirs.close(); // or nobody notices QEMU's end
    return made;
  }

  [[nodiscard]] static std::string device(const options& chosen) {
    std::string text = "virtio-balloon-device";
    if (!chosen.is_mmio())
      text =
          std::string("virtio-balloon-pci,disable-legacy=") + (chosen.is_legacy() ? "off" : "on");
    text += std::string(",id=") + device_id +
            ",deflate-on-oom=on,page-poison=on,free-page-reporting=on,free-page-hint=on,"
            "iothread=hints";
    return text + (chosen.is_packed ? ",packed=on" : "");
  }

  shared_file ram_;
  shared_file firmware_;
  qemu::socket_pair sockets_[2];
  qemu::process program_;
  qemu::qmp monitor_;
  qemu::qtest cpu_;
};

} // namespace qtest_driver
