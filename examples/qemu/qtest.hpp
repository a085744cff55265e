// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include "base64.hpp"
#include "socket.hpp"

#include <ballast/endian.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace qemu {

/// A line of the intercepted interrupt controller that was raised or lowered.
struct interrupt_line {
  unsigned number = 0;
  bool is_raised = false;
};

/// A machine in QEMU as its processor sees it, through the socket that QEMU was given with -qtest:
/// physical memory and registers, ports, interrupt lines.
///
///     qtest cpu(std::move(socket));
///     cpu.write<std::uint32_t>(0xfeb0'0070, 1);
///     if (!cpu.is_open()) ... cpu.error() ...
///
/// One request at a time, each answered before the call returns. Once a request failed the
/// connection is lost for good: what is read then is 0. QEMU: softmmu/qtest.c.
class qtest {
 public:
  explicit qtest(descriptor socket) noexcept : lines_(std::move(socket)) {}

  [[nodiscard]] bool is_open() const noexcept { return lines_.is_open(); }
  /// Why the connection was lost, in one line.
  [[nodiscard]] const std::string& error() const noexcept { return lines_.error(); }
  /// How many requests there were.
  [[nodiscard]] std::uint64_t requests() const noexcept { return requests_; }

  /// A value in physical memory, or a register.
  template <ballast::wire_integer T> [[nodiscard]] T read(std::uint64_t address) noexcept {
    return static_cast<T>(request_value("read%c 0x%llx\n", letter<T>(), as_printed(address)));
  }
  template <ballast::wire_integer T> void write(std::uint64_t address, T value) noexcept {
    (void)request_value("write%c 0x%llx 0x%llx\n", letter<T>(), as_printed(address),
                        as_printed(value));
  }

  /// A value at a port: 1, 2 or 4 bytes.
  template <ballast::wire_integer T>
    requires(sizeof(T) <= 4)
  [[nodiscard]] T in(std::uint16_t port) noexcept {
    return static_cast<T>(request_value("in%c 0x%llx\n", letter<T>(), as_printed(port)));
  }
  template <ballast::wire_integer T>
    requires(sizeof(T) <= 4)
  void out(std::uint16_t port, T value) noexcept {
    (void)request_value("out%c 0x%llx 0x%llx\n", letter<T>(), as_printed(port), as_printed(value));
  }

  /// A copy of physical memory.
  [[nodiscard]] bool read(std::uint64_t address, std::span<std::byte> to) noexcept {
    for (; is_open() && !to.empty();) {
      const auto piece = to.first(std::min(to.size(), piece_bytes));
      const auto text =
          request(format("b64read 0x%llx 0x%llx\n", as_printed(address), as_printed(piece.size())));
      if (text && !base64::decode(*text, piece)) lines_.lose("b64read: not base64: " + *text);
      address += piece.size();
      to = to.subspan(piece.size());
    }
    return is_open();
  }
  [[nodiscard]] bool write(std::uint64_t address, std::span<const std::byte> from) noexcept {
    for (; is_open() && !from.empty();) {
      const auto piece = from.first(std::min(from.size(), piece_bytes));
      (void)request(
          format("b64write 0x%llx 0x%llx ", as_printed(address), as_printed(piece.size())) +
          base64::encode(piece) + '\n');
      address += piece.size();
      from = from.subspan(piece.size());
    }
    return is_open();
  }

  /// Sets an input of a device, such as a line of "ioapic": name "unnamed-gpio-in".
  void set_irq_in(const std::string& device, const std::string& name, unsigned number,
                  bool level) noexcept {
    (void)request("set_irq_in " + device + ' ' + name + ' ' + std::to_string(number) +
                  (level ? " 1\n" : " 0\n"));
  }
  /// From now on what comes in at the device's lines is told here, by `take_interrupt`, and not to
  /// the device.
  void intercept_in(const std::string& device) noexcept {
    (void)request("irq_intercept_in " + device + '\n');
  }
  /// The next change of a line that is intercepted; nothing where there is none in time.
  [[nodiscard]] std::optional<interrupt_line> take_interrupt(milliseconds time = {}) noexcept {
    if (interrupts_.empty())
      if (const auto line = lines_.receive(time)) note_interrupt(*line);
    if (interrupts_.empty()) return std::nullopt;
    const interrupt_line first = interrupts_.front();
    interrupts_.pop_front();
    return first;
  }

 private:
  /// More at once takes QEMU a time that grows with the square.
  static constexpr std::size_t piece_bytes = 65536;
  static constexpr milliseconds patience{20'000};

  template <class T> [[nodiscard]] static constexpr char letter() noexcept {
    return sizeof(T) == 1 ? 'b' : sizeof(T) == 2 ? 'w' : sizeof(T) == 4 ? 'l' : 'q';
  }
  [[nodiscard]] static constexpr unsigned long long as_printed(std::uint64_t n) noexcept {
    return n;
  }

  template <class... Arguments>
  [[nodiscard]] static std::string format(const char* how, Arguments... arguments) noexcept {
    char text[96];
    const int n = std::snprintf(text, sizeof(text), how, arguments...);
    return {text, static_cast<std::size_t>(n)};
  }

  template <class... Arguments>
  std::uint64_t request_value(const char* how, Arguments... arguments) noexcept {
    const auto text = request(format(how, arguments...));
    if (!text || text->empty()) return 0;
    std::uint64_t value = 0;
    const std::string_view digits = std::string_view(*text).substr(text->starts_with("0x") ? 2 : 0);
    const auto [end, failed] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (failed == std::errc{} && end == digits.data() + digits.size()) return value;
    lines_.lose("not a number: " + *text);
    return 0;
  }

  /// What came behind OK; nothing where the connection is lost.
  [[nodiscard]] std::optional<std::string> request(const std::string& line) noexcept {
    if (!is_open()) return std::nullopt;
    ++requests_;
    const std::string command = line.substr(0, std::min<std::size_t>(line.size() - 1, 60));
    if (!lines_.send(line)) return std::nullopt;
    for (;;) {
      auto answer = lines_.receive(patience);
      if (!answer) {
        lines_.lose("no answer to " + command);
        return std::nullopt;
      }
      if (answer->starts_with("IRQ ")) {
        note_interrupt(*answer);
        continue;
      }
      if (*answer == "OK") return std::string();
      if (answer->starts_with("OK ")) return answer->substr(3);
      lines_.lose(command + ": " + *answer);
      return std::nullopt;
    }
  }

  /// "IRQ raise 5", "IRQ lower 5".
  void note_interrupt(const std::string& line) noexcept {
    interrupt_line found{.is_raised = line.starts_with("IRQ raise ")};
    const std::string_view number = std::string_view(line).substr(line.rfind(' ') + 1);
    const auto [end, failed] =
        std::from_chars(number.data(), number.data() + number.size(), found.number);
    if (failed != std::errc{} || end != number.data() + number.size() ||
        !(found.is_raised || line.starts_with("IRQ lower ")))
      return lines_.lose("not an interrupt: " + line);
    interrupts_.push_back(found);
  }

  line_socket lines_;
  std::deque<interrupt_line> interrupts_;
  std::uint64_t requests_ = 0;
};

} // namespace qemu
