// SPDX-License-Identifier: BSD-3-Clause
#include "guest.hpp"

#include <array>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

namespace interop {

guest::guest(const guest_options& options) : log_(options.directory + "/console") {
  auto proxy = qemu::socket_pair::make(), shell = qemu::socket_pair::make(),
       qtest = qemu::socket_pair::make(), monitor = qemu::socket_pair::make();
  const std::string memory = std::to_string(options.memory) + "M";
  const auto socket = [](const std::string& id, const qemu::socket_pair& pair) {
    return "socket,id=" + id + ",fd=" + std::to_string(pair.theirs.get());
  };
  // The kernel's messages have a serial port of their own.
  qemu::launch what{
      .arguments = {"qemu-system-x86_64",
                    "-machine",
                    "pc,memory-backend=ram",
                    "-accel",
                    "tcg",
                    "-m",
                    memory,
                    "-nodefaults",
                    "-display",
                    "none",
                    "-no-reboot",
                    "-object",
                    "memory-backend-memfd,id=ram,share=on,size=" + memory,
                    "-chardev",
                    socket("qtest", qtest),
                    "-qtest",
                    "chardev:qtest",
                    "-qtest-log",
                    "/dev/null",
                    "-chardev",
                    socket("monitor", monitor),
                    "-mon",
                    "chardev=monitor,mode=control",
                    "-chardev",
                    "file,id=console,path=" + log_,
                    "-serial",
                    "chardev:console",
                    "-chardev",
                    socket("shell", shell),
                    "-serial",
                    "chardev:shell",
                    "-kernel",
                    options.kernel + "/vmlinuz",
                    "-initrd",
                    options.kernel + "/initramfs",
                    "-append",
                    "console=ttyS0 panic=-1 quiet " + options.kernel_options},
      .passed = {proxy.theirs.get(), shell.theirs.get(), qtest.theirs.get(), monitor.theirs.get()}};
  if (options.is_proxied) {
    what.arguments.insert(
        what.arguments.end(),
        {"-device", "x-pci-proxy-dev,id=balloon,addr=5,fd=" + std::to_string(proxy.theirs.get())});
  }
  what.arguments.insert(what.arguments.end(), options.more.begin(), options.more.end());
  process_ = qemu::process::start(what);
  proxy_ = std::move(proxy.ours);
  shell_ = std::move(shell.ours);
  monitor_ = std::move(monitor.ours);
  qtest_.emplace(std::move(qtest.ours));
}

void guest::run(const std::string& line) {
  receive();
  text_.clear();
  status_.reset();
  const std::string all = line + '\n';
  (void)!::send(shell_.get(), all.data(), all.size(), MSG_NOSIGNAL);
}

void guest::receive() {
  std::array<char, 4096> piece{};
  ssize_t n = 0;
  while ((n = recv(shell_.get(), piece.data(), piece.size(), MSG_DONTWAIT)) > 0)
    text_.append(piece.data(), static_cast<std::size_t>(n));
}

bool guest::is_ready() {
  receive();
  return text_.find("<ready>\n") != std::string::npos;
}

bool guest::has_answered() {
  if (status_) return true;
  receive();
  const std::size_t end = text_.rfind("<done ");
  if (end == std::string::npos || text_.find(">\n", end) == std::string::npos) return false;
  status_ = std::atoi(text_.c_str() + end + 6);
  text_.resize(end);
  return true;
}

std::string guest::console() const {
  std::ifstream file(log_, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string guest::error() const {
  return process_.error().empty() ? process_.errors() : process_.error();
}

std::map<std::string, std::uint64_t> parse_numbers(const std::string& text) {
  std::map<std::string, std::uint64_t> found;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string name, unit;
    std::uint64_t value = 0;
    if (!(words >> name >> value)) continue;
    if (name.back() == ':') name.pop_back();
    found[name] = words >> unit && unit == "kB" ? value * 1024 : value;
  }
  return found;
}

} // namespace interop
