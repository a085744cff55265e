// SPDX-License-Identifier: BSD-3-Clause
// How fast a Linux guest inflates and deflates its balloon, on our device and on QEMU's own: two
// guests in QEMU, alike but for the device, take turns. bench/guests.sh runs it.
//
//     guests KERNEL DIRECTORY [--quick] [--json]
//
// KERNEL: a directory as tests/interop/guest_images.sh makes it. DIRECTORY: for logs.

#include "../examples/qemu/qmp.hpp"
#include "../tests/interop/guest.hpp"
#include "../tests/interop/pci_proxy.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace ballast::balloon;
using interop::guest;
using interop::guest_options;
using clock_type = std::chrono::steady_clock;
namespace ring = ballast::feature;

constexpr unsigned memory = 512; // MiB
constexpr int patience = 60'000; // milliseconds

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

/// Bytes that the guest's memory takes up: of QEMU's memfd.
std::uint64_t allocated(pid_t process) {
  const std::string directory = "/proc/" + std::to_string(process) + "/fd/";
  std::uint64_t bytes = 0;
  DIR* files = opendir(directory.c_str());
  while (const dirent* file = files == nullptr ? nullptr : readdir(files)) {
    struct stat about{};
    if (stat((directory + file->d_name).c_str(), &about) == 0 &&
        about.st_size == static_cast<off_t>(memory) << 20)
      bytes = static_cast<std::uint64_t>(about.st_blocks) * 512;
  }
  if (files != nullptr) closedir(files);
  return bytes;
}

/// A guest and what is done with its balloon.
class contestant {
 public:
  explicit contestant(const guest_options& options) : guest_(options) {}
  contestant(const contestant&) = delete;
  contestant& operator=(const contestant&) = delete;
  virtual ~contestant() = default;

  void start() {
    if (!wait([&] { return guest_.is_ready(); })) give_up("no guest: " + guest_.error());
    run("insmod $balloon");
  }
  void run(const std::string& line) {
    guest_.run(line);
    if (!wait([&] { return guest_.has_answered(); }) || guest_.status() != 0)
      give_up("the guest cannot: " + line);
  }
  /// Seconds until the driver says that the balloon has this size.
  double reach(std::uint32_t pages) {
    const auto begin = clock_type::now();
    set_target(pages);
    if (!wait([&] { return actual() == pages; })) give_up("the balloon does not get there");
    return std::chrono::duration<double>(clock_type::now() - begin).count();
  }
  [[nodiscard]] std::uint64_t held() const { return allocated(guest_.id()); }

  virtual bool wait(const std::function<bool()>& is_done) = 0;

 protected:
  virtual void set_target(std::uint32_t pages) = 0;
  virtual std::uint32_t actual() = 0;
  guest guest_;
};

class ours : public contestant {
 public:
  explicit ours(const guest_options& options)
      : contestant(options),
        server_(guest_.take_proxy(),
                {.send_message = [this](std::uint64_t address,
                                        std::uint32_t data) { guest_.send_message(address, data); },
                 .set_line = [this](bool is_raised) { guest_.set_line(is_raised); }},
                {.device = {.offered = {feature::stats_vq, ring::event_idx},
                            .numbering = queue_numbering::by_negotiated},
                 .bus = {.is_transitional = true}}) {
    server_.watch({guest_.shell()});
  }
  bool wait(const std::function<bool()>& is_done) override {
    return server_.run_until(is_done, patience);
  }

 private:
  void set_target(std::uint32_t pages) override {
    server_.perform(server_.device().set_target(pages));
  }
  std::uint32_t actual() override { return server_.device().actual(); }

  interop::pci_proxy server_;
};

class qemus : public contestant {
 public:
  explicit qemus(const guest_options& options)
      : contestant(options), monitor_(guest_.take_monitor()) {}
  bool wait(const std::function<bool()>& is_done) override {
    const auto end = clock_type::now() + std::chrono::milliseconds(patience);
    while (!is_done()) {
      if (clock_type::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    return true;
  }

 private:
  // QEMU speaks of what is left.
  static constexpr std::uint64_t all = std::uint64_t{memory} << 20;
  void set_target(std::uint32_t pages) override {
    if (const auto done = monitor_.command("balloon", {{"value", all - bytes_of(pages)}}); !done)
      give_up(done.error);
  }
  std::uint32_t actual() override {
    const auto now = monitor_.command("query-balloon");
    if (!now) give_up(now.error);
    return static_cast<std::uint32_t>((all - qemu::number_in(now.value, "actual")) / page_size);
  }

  qemu::qmp monitor_;
};

double median(std::vector<double> of) {
  std::ranges::sort(of);
  return of[of.size() / 2];
}

} // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  bool is_quick = false, is_json = false;
  for (int i = 3; i < argc; ++i) {
    is_quick |= argv[i] == std::string("--quick");
    is_json |= argv[i] == std::string("--json");
  }
  const std::uint32_t pages = is_quick ? 10'000 : 60'000;
  const int samples = is_quick ? 3 : 15;

  const std::string directory = argv[2];
  guest_options options{.kernel = argv[1], .directory = directory + "/ours", .memory = memory};
  ours our_side(options);
  options.directory = directory + "/qemus";
  options.is_proxied = false;
  options.more = {"-device", "virtio-balloon-pci,id=balloon,addr=5"};
  qemus their_side(options);

  contestant* const sides[] = {&our_side, &their_side};
  const char* const names[] = {"Ballast, x-pci-proxy-dev", "QEMU's virtio-balloon-pci"};
  std::vector<double> inflating[2], deflating[2];
  for (contestant* side : sides) side->start();
  for (int sample = -1; sample < samples; ++sample) { // the first one does not count
    for (unsigned which = 0; which < 2; ++which) {
      contestant& side = *sides[which ^ (sample & 1)];
      const unsigned index = which ^ (static_cast<unsigned>(sample) & 1);
      side.run("hog 300"); // all of what is inflated next is there
      const std::uint64_t full = side.held();
      const double up = side.reach(pages);
      if (const std::uint64_t left = side.held(); left + bytes_of(pages) * 9 / 10 > full)
        give_up(std::string(names[index]) + ": the memory did not come back");
      const double down = side.reach(0);
      if (sample < 0) continue;
      inflating[index].push_back(up);
      deflating[index].push_back(down);
    }
  }

  const double bytes = static_cast<double>(bytes_of(pages)) / (1u << 30);
  if (!is_json) {
    std::printf("a balloon of %u pages in a guest of %u MiB, medians of %d\n", pages, memory,
                samples);
    std::printf("%-28s %-9s %12s %8s\n", "device", "", "pages/s", "GiB/s");
  }
  const char* separator = "[";
  for (unsigned i = 0; i < 2; ++i)
    for (const bool is_up : {true, false}) {
      const double time = median(is_up ? inflating[i] : deflating[i]);
      const char* what = is_up ? "inflate" : "deflate";
      if (is_json)
        std::printf("%s{\"device\": \"%s\", \"what\": \"%s\", \"pages_per_second\": %.0f, "
                    "\"gib_per_second\": %.3f}",
                    separator, names[i], what, pages / time, bytes / time);
      else
        std::printf("%-28s %-9s %12.0f %8.2f\n", names[i], what, pages / time, bytes / time);
      separator = ",\n ";
    }
  if (is_json) std::printf("]\n");
}
