// SPDX-License-Identifier: BSD-3-Clause
// How fast does memory come back? GiB/s of anonymous memory given back, with
// (a) one madvise for each PFN, as QEMU does, without any ring;
// (b) the balloon device and the back end, from the PFNs that the guest writes to the buffers that
//     it takes back;
// (c) one madvise over everything: the limit.
// Every pass touches all pages again before each of them and begins with another one; the figures
// are medians. Seconds are those of this thread on its processor: other programs disturb them
// least.

#include <ballast/balloon/device.hpp>
#include <ballast/balloon/protocol.hpp>
#include <ballast/host/discard.hpp>
#include <ballast/host/mapping.hpp>
#include <ballast/memory/mapped_memory.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>
#include <ballast/virtqueue/split_driver.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <vector>

namespace {

using namespace ballast;

constexpr std::uint64_t page = 4096;
constexpr guest_address memory_at = 0x1'0000'0000, ring_at = 0x1000;
constexpr std::uint32_t queue_size = 128, pfns_in_buffer = 256;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "discard: %s\n", what);
  std::exit(1);
}

enum class sequence { ascending, descending, random };
enum class pages { small, transparent_huge };
enum class method { each_pfn, batches_of_16, one_buffer, without_vectors, whole };

/// One line of the table, and the seconds of its passes.
struct row {
  const char* name;
  sequence pfns;
  pages size;
  method how;
  std::vector<double> seconds = {};
  double gib_per_second = 0;
  double calls_per_pass = 0;
};

/// The guest's memory that is inflated, and apart from it what the rings and the PFNs lie in.
struct guest_memory_of {
  explicit guest_memory_of(std::uint64_t bytes) : size(bytes) {
    memory = map(size);
    rings = map(rings_size);
    regions[0] = {ring_at, rings, rings_size};
    regions[1] = {memory_at, memory, size};
  }
  guest_memory_of(const guest_memory_of&) = delete;
  guest_memory_of& operator=(const guest_memory_of&) = delete;

  static constexpr std::uint64_t rings_size = 1 << 20;
  std::uint64_t size;
  std::byte* memory = nullptr;
  std::byte* rings = nullptr;
  memory_region regions[2];

 private:
  /// Aligned to 2 MiB; with pages without access around it, so that it stays a mapping of its own.
  static std::byte* map(std::uint64_t bytes) {
    constexpr std::uint64_t huge = 2 << 20;
    void* const whole = mmap(nullptr, bytes + 3 * huge, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) fail("no address space");
    const auto begin = (reinterpret_cast<std::uintptr_t>(whole) + 2 * huge - 1) / huge * huge;
    auto* const start =
        static_cast<std::byte*>(whole) + (begin - reinterpret_cast<std::uintptr_t>(whole));
    if (mprotect(start, bytes, PROT_READ | PROT_WRITE) != 0) fail("no memory");
    (void)madvise(start, bytes, MADV_NOHUGEPAGE);
    return start;
  }
};

/// A balloon device over the guest's memory, and a driver's inflate queue.
class machine {
 public:
  machine(guest_memory_of& guest, const host::discard_options& options)
      : memory_(*mapped_memory::over(guest.regions)) {
    if (!back_end_.start(guest.regions, options)) fail("the back end does not start");
    const feature_set features{feature::version_1, feature::event_idx};
    const auto inflate = split::place(ring_at, queue_size);
    const auto deflate = split::place(inflate.end, queue_size);
    pfns_at_ = (deflate.end + page - 1) & ~(page - 1);
    const queue_layout layouts[] = {inflate.layout, deflate.layout};
    if (!queue_.start(memory_, layouts[0], features)) fail("the queue does not start");
    if (device_.activate(features, layouts, memory_).failure != error::none)
      fail("the device does not start");
  }

  /// Inflates by all `pfns`, `buffers` of them at a time.
  void inflate(std::span<const std::uint32_t> pfns, std::uint32_t buffers) {
    while (!pfns.empty()) {
      std::uint32_t used = 0;
      for (; used < buffers && !pfns.empty(); ++used) {
        const std::size_t count = std::min<std::size_t>(pfns.size(), pfns_in_buffer);
        const guest_address at = pfns_at_ + used * pfns_in_buffer * sizeof(std::uint32_t);
        const auto bytes = std::as_bytes(pfns.first(count)); // little-endian, as this machine is
        if (!memory_.write(at, bytes)) fail("no memory for the PFNs");
        const buffer one{at, static_cast<std::uint32_t>(bytes.size())};
        if (!queue_.add(std::span(&one, 1), {}, used)) fail("no room in the queue");
        pfns = pfns.subspan(count);
      }
      (void)queue_.publish_and_ask();
      if (device_.process(0, buffers).failure != error::none) fail("the device failed");
      for (std::uint32_t i = 0; i < used; ++i)
        if (!queue_.pop_used()) fail("a buffer was not returned");
    }
  }

  [[nodiscard]] const host::discard_counters& counters() const { return back_end_.counters(); }

 private:
  host::discard_storage<16 * pfns_in_buffer, 2> storage_;
  host::discarder back_end_{storage_};
  mapped_memory memory_;
  balloon::device<mapped_memory, host::discarder, queue_size> device_{back_end_};
  std::array<driver_slot, queue_size> slots_;
  split_driver<mapped_memory> queue_{slots_};
  guest_address pfns_at_ = 0;
};

std::vector<std::uint32_t> pfns_in(sequence o, std::uint64_t count) {
  std::vector<std::uint32_t> made(count);
  std::iota(made.begin(), made.end(), static_cast<std::uint32_t>(memory_at / page));
  if (o == sequence::descending) std::reverse(made.begin(), made.end());
  if (o == sequence::random)
    std::shuffle(made.begin(), made.end(), std::mt19937(1)); // NOLINT: the same
  return made;
}

void touch(const guest_memory_of& guest) {
  for (std::uint64_t at = 0; at < guest.size; at += page) guest.memory[at] = std::byte{1};
}

[[nodiscard]] std::uint64_t resident(const guest_memory_of& guest) {
  return host::find_mapping(guest.memory, guest.size)->resident_bytes;
}

[[nodiscard]] bool has_transparent_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

[[nodiscard]] double own_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void run(row& r, guest_memory_of& guest, machine& with_vectors, machine& without,
         std::span<const std::uint32_t> pfns) {
  // No pages of the other size are left from before.
  (void)madvise(guest.memory, guest.size, MADV_DONTNEED);
  (void)madvise(guest.memory, guest.size, r.size == pages::small ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
  touch(guest);
  if (resident(guest) != guest.size) fail("the memory is not all there");
  machine& ours = r.how == method::without_vectors ? without : with_vectors;
  const std::uint64_t calls_before = ours.counters().system_calls;
  std::uint64_t own_calls = 0;
  const double start = own_seconds();
  switch (r.how) {
  case method::each_pfn:
    for (const std::uint32_t pfn : pfns)
      if (madvise(guest.memory + (pfn * page - memory_at), page, MADV_DONTNEED) != 0)
        fail("madvise");
    own_calls = pfns.size();
    break;
  case method::batches_of_16:
  case method::without_vectors: ours.inflate(pfns, 16); break;
  case method::one_buffer: ours.inflate(pfns, 1); break;
  case method::whole:
    if (madvise(guest.memory, guest.size, MADV_DONTNEED) != 0) fail("madvise");
    own_calls = 1;
    break;
  }
  r.seconds.push_back(own_seconds() - start);
  if (resident(guest) != 0) fail("the memory has not come back");
  r.calls_per_pass = static_cast<double>(own_calls + ours.counters().system_calls - calls_before);
}

[[nodiscard]] double median(std::vector<double> of) {
  std::sort(of.begin(), of.end());
  return of[of.size() / 2];
}

} // namespace

int main(int argc, char** argv) {
  std::uint64_t mib = 512, passes = 9;
  bool is_json = false, is_quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--json") {
      is_json = true;
    } else if (option == "--quick") {
      is_quick = true;
      mib = 64, passes = 5;
    } else {
      fail("unknown option");
    }
  }

  guest_memory_of guest(mib << 20);
  const auto with_vectors = std::make_unique<machine>(guest, host::discard_options{});
  const auto without =
      std::make_unique<machine>(guest, host::discard_options{.uses_vectors = false});
  const std::uint64_t count = guest.size / page;
  const std::vector<std::uint32_t> pfns[] = {pfns_in(sequence::ascending, count),
                                             pfns_in(sequence::descending, count),
                                             pfns_in(sequence::random, count)};
  constexpr auto up = sequence::ascending, down = sequence::descending, mixed = sequence::random;
  row rows[] = {
      {"(c) one madvise", up, pages::small, method::whole},
      {"(a) madvise per PFN", up, pages::small, method::each_pfn},
      {"(b) device, 16 buffers", up, pages::small, method::batches_of_16},
      {"(a) madvise per PFN", down, pages::small, method::each_pfn},
      {"(b) device, 16 buffers", down, pages::small, method::batches_of_16},
      {"(a) madvise per PFN", mixed, pages::small, method::each_pfn},
      {"(b) device, 16 buffers", mixed, pages::small, method::batches_of_16},
      {"(b) without process_madvise", mixed, pages::small, method::without_vectors},
      {"device, 1 buffer (Linux)", up, pages::small, method::one_buffer},
      {"device, 1 buffer (Linux)", down, pages::small, method::one_buffer},
      {"device, 1 buffer (Linux)", mixed, pages::small, method::one_buffer},
      {"one madvise", up, pages::transparent_huge, method::whole},
      {"madvise per PFN", up, pages::transparent_huge, method::each_pfn},
      {"device, 16 buffers", up, pages::transparent_huge, method::batches_of_16},
      {"device, 16 buffers", down, pages::transparent_huge, method::batches_of_16},
      {"device, 1 buffer (Linux)", down, pages::transparent_huge, method::one_buffer},
  };
  std::span<row> all(rows);
  if (!has_transparent_huge_pages()) {
    std::fprintf(stderr, "discard: no transparent huge pages here; left out\n");
    all = all.first(static_cast<std::size_t>(
        std::find_if(all.begin(), all.end(),
                     [](const row& r) { return r.size == pages::transparent_huge; }) -
        all.begin()));
  }
  // Interleaved, each pass beginning elsewhere; the first one warms up and is not counted.
  for (std::uint64_t pass = 0; pass <= passes; ++pass) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      row& r = all[(i + pass * 5) % all.size()];
      run(r, guest, *with_vectors, *without, pfns[static_cast<std::size_t>(r.pfns)]);
    }
    if (pass == 0)
      for (row& r : all) r.seconds.clear();
  }
  for (row& r : all)
    r.gib_per_second = static_cast<double>(guest.size) / (1 << 30) / median(r.seconds);

  const char* const order_names[] = {"ascending", "descending", "random"};
  const char* const page_names[] = {"4 KiB", "transparent huge"};
  const char separators[] = {'[', ','};
  bool is_met = true;
  if (!is_json)
    std::printf("%-28s %-11s %-17s %8s %9s %14s\n", "given back", "PFNs", "pages", "GiB/s",
                "of limit", "system calls");
  for (const row& r : all) {
    const row& limit = *std::find_if(all.begin(), all.end(), [&r](const row& other) {
      return other.how == method::whole && other.size == r.size;
    });
    const double times = limit.gib_per_second / r.gib_per_second;
    const bool is_bound =
        r.how == method::batches_of_16 && r.size == pages::small && r.pfns != mixed;
    is_met = is_met && !(is_bound && times > 1.3);
    if (is_json) {
      std::printf(
          "%c{\"name\": \"%s\", \"pfns\": \"%s\", \"pages\": \"%s\", \"gib_per_second\": %.3f, "
          "\"times_of_limit\": %.3f, \"system_calls\": %.0f}\n",
          separators[&r != rows], r.name, order_names[static_cast<int>(r.pfns)],
          page_names[static_cast<int>(r.size)], r.gib_per_second, times, r.calls_per_pass);
    } else {
      std::printf("%-28s %-11s %-17s %8.2f %8.2fx %14.0f%s\n", r.name,
                  order_names[static_cast<int>(r.pfns)], page_names[static_cast<int>(r.size)],
                  r.gib_per_second, times, r.calls_per_pass,
                  is_bound && times > 1.3 ? "  more than 1.3 times the limit" : "");
    }
  }
  if (is_json) std::printf("]\n");
  if (!is_met && !is_quick) return 1;
}
