// SPDX-License-Identifier: BSD-3-Clause
#include <ballast/host/mapping.hpp>

#include "support/host_memory.hpp"

#include <doctest/doctest.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <sys/ipc.h>
#include <sys/shm.h>

namespace {

using namespace ballast;
using namespace ballast::host;
using namespace ballast_test;

const bool emulated = is_emulated();

mapping_kind kind_of_mapping(const guarded_mapping& m) {
  REQUIRE(m.data() != nullptr);
  const auto found = find_mapping(m.data(), m.size());
  REQUIRE(found.error() == error::none);
  CHECK(found->is_writable);
  CHECK(!found->is_locked);
  CHECK(found->page_size == page);
  return found->kind;
}

TEST_CASE("memory without a file is anonymous where it is private, and shared memory where not" *
          doctest::skip(emulated)) {
  CHECK(kind_of_mapping(guarded_mapping(4 * page, MAP_PRIVATE)) == mapping_kind::anonymous);
  CHECK(kind_of_mapping(guarded_mapping(4 * page, MAP_SHARED)) == mapping_kind::shared_memory);
}

TEST_CASE("a memfd is shared memory, and a file where it is mapped privately" *
          doctest::skip(emulated)) {
  const owned_file file(make_memfd(4 * page));
  const guarded_mapping shared(4 * page, MAP_SHARED, file.get());
  const guarded_mapping own(4 * page, MAP_PRIVATE, file.get());
  CHECK(kind_of_mapping(shared) == mapping_kind::shared_memory);
  CHECK(kind_of_mapping(own) == mapping_kind::file_private);
}

TEST_CASE("System V shared memory is shared memory" * doctest::skip(emulated)) {
  const int id = shmget(IPC_PRIVATE, 4 * page, IPC_CREAT | 0600);
  REQUIRE(id >= 0);
  void* const at = shmat(id, nullptr, 0);
  (void)shmctl(id, IPC_RMID, nullptr);
  REQUIRE(at != reinterpret_cast<void*>(-1));
  CHECK(find_mapping(at, 4 * page)->kind == mapping_kind::shared_memory);
  (void)shmdt(at);
}

TEST_CASE("a file is a file, on a disk and in a tmpfs, as soon as it is not a memfd" *
          doctest::skip(emulated)) {
  const owned_file disk(make_disk_file(4 * page, 'x'));
  REQUIRE(disk.get() >= 0);
  const guarded_mapping shared(4 * page, MAP_SHARED, disk.get());
  const guarded_mapping own(4 * page, MAP_PRIVATE, disk.get());
  CHECK(kind_of_mapping(shared) == mapping_kind::file_shared);
  CHECK(kind_of_mapping(own) == mapping_kind::file_private);

  const std::string name = "/ballast-test-" + std::to_string(getpid());
  const owned_file in_tmpfs(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (in_tmpfs.get() < 0) return; // no tmpfs for it here
  CHECK(ftruncate(in_tmpfs.get(), static_cast<off_t>(4 * page)) == 0);
  const guarded_mapping named(4 * page, MAP_SHARED, in_tmpfs.get());
  CHECK(kind_of_mapping(named) == mapping_kind::file_shared);
  (void)shm_unlink(name.c_str());
  CHECK(kind_of_mapping(named) == mapping_kind::file_shared); // and not its name either
}

TEST_CASE("huge pages are told from others, and are counted by themselves "
          "[needs root or free huge pages]" *
          doctest::skip(emulated || !has_huge_pages(4))) {
  const reserved_huge_pages reserved(4);
  const owned_file file(make_memfd(2 * huge_page, MFD_HUGETLB | unsigned{huge_2m & ~MAP_HUGETLB}));
  const guarded_mapping shared(2 * huge_page, MAP_SHARED | huge_2m, file.get());
  const guarded_mapping own(2 * huge_page, MAP_PRIVATE | huge_2m);
  REQUIRE(shared.data() != nullptr);
  REQUIRE(own.data() != nullptr);
  shared.data()[0] = own.data()[0] = std::byte{1};
  const auto a = find_mapping(shared.data(), shared.size());
  const auto b = find_mapping(own.data(), own.size());
  CHECK(a->kind == mapping_kind::hugetlb_shared);
  CHECK(b->kind == mapping_kind::hugetlb_private);
  for (const auto& found : {a, b}) {
    CHECK(found->page_size == huge_page);
    CHECK(found->hugetlb_bytes == huge_page);
    CHECK(found->resident_bytes == 0);
  }
}

TEST_CASE("what is resident and what is read-only or locked is told" * doctest::skip(emulated)) {
  const guarded_mapping m(8 * page, MAP_PRIVATE);
  CHECK(find_mapping(m.data(), m.size())->resident_bytes == 0);
  std::memset(m.data(), 1, 3 * page);
  CHECK(find_mapping(m.data(), m.size())->resident_bytes == 3 * page);

  REQUIRE(mprotect(m.data() + 4 * page, page, PROT_READ) == 0); // now of three parts
  CHECK(!find_mapping(m.data(), m.size())->is_writable);
  CHECK(find_mapping(m.data(), 4 * page)->is_writable);
  CHECK(find_mapping(m.data(), m.size())->resident_bytes == 3 * page);

  REQUIRE(lock_memory(m.data() + 6 * page, page));
  CHECK(find_mapping(m.data(), m.size())->is_locked);
  CHECK(!find_mapping(m.data(), 6 * page)->is_locked);
}

TEST_CASE("a range that is not all mapped is an error" * doctest::skip(emulated)) {
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  REQUIRE(munmap(m.data() + 2 * page, page) == 0);
  CHECK(find_mapping(m.data(), 2 * page).has_value());
  CHECK(find_mapping(m.data(), 2 * page + 1).error() == error::not_mapped);
  CHECK(find_mapping(m.data(), 4 * page).error() == error::not_mapped);
  CHECK(find_mapping(m.data() + 2 * page, page).error() == error::not_mapped);
  CHECK(find_mapping(m.data() + 3 * page, page).has_value());
  CHECK(find_mapping(m.data(), 0).error() == error::not_mapped);
  CHECK(find_mapping(m.data(), UINT64_MAX).error() == error::not_mapped);
  CHECK(find_mapping(nullptr, page).error() == error::not_mapped);
}

TEST_CASE("a range of different kinds is an error" * doctest::skip(emulated)) {
  const guarded_mapping m(4 * page, MAP_PRIVATE);
  REQUIRE(mmap(m.data() + 2 * page, 2 * page, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
  CHECK(find_mapping(m.data(), 4 * page).error() == error::mapping_mixed);
  CHECK(find_mapping(m.data(), 2 * page)->kind == mapping_kind::anonymous);
  CHECK(find_mapping(m.data() + 2 * page, page)->kind == mapping_kind::shared_memory);
}

// Tables written for the purpose, as text.

struct written_table {
  explicit written_table(const std::string& text) : file(make_memfd(0)) {
    REQUIRE(write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    path = "/proc/self/fd/" + std::to_string(file.get());
  }
  result<mapping> find(std::uintptr_t begin, std::uint64_t size) const {
    return find_mapping(reinterpret_cast<const void*>(begin), size, path.c_str());
  }
  owned_file file;
  std::string path;
};

std::string entry(const std::string& head, const std::string& flags) {
  return head + "\nKernelPageSize:        4 kB\nRss:                   8 kB\nVmFlags: " + flags +
         "\n";
}

TEST_CASE("a table that cannot be read, is cut off or is something else is an error" *
          doctest::skip(emulated)) {
  const auto unreadable = find_mapping("x", 1, "/proc/self/no-such-table");
  CHECK(unreadable.error() == error::mapping_unreadable);
  CHECK(errno == ENOENT);
  const std::string good = entry("1000-3000 rw-p 00000000 00:00 0 ", "rd wr");
  CHECK(written_table(good).find(0x1000, 0x2000)->resident_bytes == 8192);
  // A part of it is never taken for the whole.
  for (std::size_t n = 0; n + 1 < good.size(); ++n) {
    const auto found = written_table(good.substr(0, n)).find(0x1000, 0x2000);
    const bool has_flags_key = n >= good.find("VmFlags:") + 8;
    CHECK(found.error() == (has_flags_key ? error::none : error::not_mapped));
  }
  for (const char* const text :
       {"", "\n", "one\ntwo\n", "1000 3000 rw-p\n", "1000-3000\n", "1000-3000 rw-p 0 00-00 0 \n"})
    CHECK(written_table(text).find(0x1000, 0x2000).error() == error::not_mapped);
}

TEST_CASE("lines of any length are read" * doctest::skip(emulated)) {
  for (const std::size_t length : {1u, 200u, 256u, 4000u, 4096u, 9000u}) {
    const std::string path(length, 'p');
    const written_table table(entry("1000-3000 rw-s 00000000 fe:00 77 /" + path, "rd wr sh") +
                              entry("3000-4000 rw-s 00002000 fe:00 77 /" + path, "rd wr sh lo"));
    const auto found = table.find(0x1000, 0x3000);
    CHECK(found->kind == mapping_kind::file_shared);
    CHECK(found->is_locked);
    CHECK(found->resident_bytes == 16384);
    CHECK(!table.find(0x1000, 0x2000)->is_locked);
  }
}

TEST_CASE("huge pages that others have mapped too are counted with one's own" *
          doctest::skip(emulated)) {
  for (const char* const counts : {"Shared_Hugetlb: 2048 kB\nPrivate_Hugetlb: 4096 kB\n",
                                   "Private_Hugetlb: 4096 kB\nShared_Hugetlb: 2048 kB\n"}) {
    const std::string head = "200000-e00000 rw-s 00000000 00:0f 7 /x\nKernelPageSize: 2048 kB\n";
    const written_table table(head + counts + "VmFlags: rd wr sh ht\n");
    CHECK(table.find(0x200000, 0xc00000)->hugetlb_bytes == 3 * huge_page);
    CHECK(table.find(0x200000, 0xc00000)->page_size == huge_page);
  }
}

TEST_CASE("memory of a device, and shared memory that no file stands behind, is device memory" *
          doctest::skip(emulated)) {
  const auto kind = [](const std::string& head, const std::string& flags) {
    return written_table(entry("1000-3000 " + head, flags)).find(0x1000, 0x2000)->kind;
  };
  CHECK(kind("rw-s 00000000 00:05 99 /dev/thing", "rd wr sh io pf") == mapping_kind::device);
  CHECK(kind("rw-s 00000000 00:05 99 /dev/thing", "rd wr sh pf") == mapping_kind::device);
  CHECK(kind("rw-s 00000000 00:00 0", "rd wr sh") == mapping_kind::device);
  CHECK(kind("rw-s 00000000 00:01 0 /SYSV00000000", "rd wr sh") != mapping_kind::device);
  CHECK(kind("rw-p 00000000 00:00 0", "rd wr") == mapping_kind::anonymous);
  CHECK(kind("rw-s 00000000 00:0f 7 /x", "rd wr sh ht") == mapping_kind::hugetlb_shared);
}

TEST_CASE("every kind has a name") {
  for (int k = 0; k <= static_cast<int>(mapping_kind::device); ++k)
    CHECK(std::strcmp(name(static_cast<mapping_kind>(k)), "unknown") != 0);
  CHECK(std::strcmp(name(static_cast<mapping_kind>(99)), "unknown") == 0);
}

} // namespace
