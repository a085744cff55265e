// SPDX-License-Identifier: BSD-3-Clause
// Compares what the library says with Linux's headers: those of the system, or, compiled a second
// time, those that tests/uapi_6.12.sh unpacks.
#include <ballast/balloon/protocol.hpp>
#include <ballast/balloon/statistics.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <doctest/doctest.h>

#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
// vring_init() is C: it assigns a void*. With its first parameter `auto` it is a template, and what
// only C allows is never instantiated with Linux's own struct.
#define vring_init(ring, size, memory, alignment) vring_init(auto* vr, size, memory, alignment)
#include <linux/virtio_ring.h>
#undef vring_init

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>

#ifdef BALLAST_TEST_UAPI_TAGS
static_assert(VIRTIO_BALLOON_S_NR == BALLAST_TEST_UAPI_TAGS, "these are not the headers meant");
#endif

namespace {

namespace balloon = ballast::balloon;
namespace split = ballast::split;

// Each identifier with its value, as the preprocessor sees it.
struct constant {
  const char* identifier;
  unsigned value;
};
#define CONSTANT(identifier) {#identifier, identifier}

TEST_CASE("the device id is Linux's") { CHECK(balloon::device_id == VIRTIO_ID_BALLOON); }

TEST_CASE("the balloon's features have Linux's numbers and names") {
  constexpr constant features[] = {
      CONSTANT(VIRTIO_BALLOON_F_MUST_TELL_HOST), CONSTANT(VIRTIO_BALLOON_F_STATS_VQ),
      CONSTANT(VIRTIO_BALLOON_F_DEFLATE_ON_OOM), CONSTANT(VIRTIO_BALLOON_F_FREE_PAGE_HINT),
      CONSTANT(VIRTIO_BALLOON_F_PAGE_POISON),    CONSTANT(VIRTIO_BALLOON_F_REPORTING),
  };
  for (const auto& [identifier, value] : features) {
    REQUIRE(balloon::feature::linux_name(value) != nullptr);
    CHECK(std::string_view(balloon::feature::linux_name(value)) == identifier);
  }
  CHECK(balloon::feature::must_tell_host == VIRTIO_BALLOON_F_MUST_TELL_HOST);
  CHECK(balloon::feature::stats_vq == VIRTIO_BALLOON_F_STATS_VQ);
  CHECK(balloon::feature::deflate_on_oom == VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
  CHECK(balloon::feature::free_page_hint == VIRTIO_BALLOON_F_FREE_PAGE_HINT);
  CHECK(balloon::feature::page_poison == VIRTIO_BALLOON_F_PAGE_POISON);
  CHECK(balloon::feature::page_reporting == VIRTIO_BALLOON_F_REPORTING);
}

TEST_CASE("PFNs and command ids are Linux's") {
  CHECK(balloon::pfn_shift == VIRTIO_BALLOON_PFN_SHIFT);
  CHECK(balloon::page_size == 1u << VIRTIO_BALLOON_PFN_SHIFT);
  CHECK(balloon::command_id::stop == VIRTIO_BALLOON_CMD_ID_STOP);
  CHECK(balloon::command_id::done == VIRTIO_BALLOON_CMD_ID_DONE);
  CHECK(balloon::command_id::first > VIRTIO_BALLOON_CMD_ID_DONE);
}

TEST_CASE("the configuration has Linux's fields") {
  using linux_config = struct virtio_balloon_config;
  using balloon::config;
  CHECK(sizeof(config) == sizeof(linux_config));
  CHECK(offsetof(config, num_pages) == offsetof(linux_config, num_pages));
  CHECK(offsetof(config, actual) == offsetof(linux_config, actual));
  CHECK(offsetof(config, free_page_hint_cmd_id) == offsetof(linux_config, free_page_hint_cmd_id));
  CHECK(offsetof(config, free_page_report_cmd_id) ==
        offsetof(linux_config, free_page_report_cmd_id));
  CHECK(offsetof(config, poison_val) == offsetof(linux_config, poison_val));
  CHECK(sizeof(config::num_pages) == sizeof(linux_config::num_pages));
  CHECK(sizeof(config::actual) == sizeof(linux_config::actual));
  CHECK(sizeof(config::free_page_hint_cmd_id) == sizeof(linux_config::free_page_hint_cmd_id));
  CHECK(sizeof(config::free_page_report_cmd_id) == sizeof(linux_config::free_page_report_cmd_id));
  CHECK(sizeof(config::poison_val) == sizeof(linux_config::poison_val));
}

TEST_CASE("a statistic has Linux's fields, packed") {
  using linux_statistic = struct virtio_balloon_stat;
  using statistic = balloon::statistic<std::endian::native>;
  CHECK(sizeof(statistic) == sizeof(linux_statistic));
  CHECK(offsetof(statistic, tag) == offsetof(linux_statistic, tag));
  CHECK(offsetof(statistic, value) == offsetof(linux_statistic, val));
  CHECK(sizeof(statistic::tag) == sizeof(linux_statistic::tag));
  CHECK(sizeof(statistic::value) == sizeof(linux_statistic::val));
}

constexpr constant linux_tags[] = {
    CONSTANT(VIRTIO_BALLOON_S_SWAP_IN),        CONSTANT(VIRTIO_BALLOON_S_SWAP_OUT),
    CONSTANT(VIRTIO_BALLOON_S_MAJFLT),         CONSTANT(VIRTIO_BALLOON_S_MINFLT),
    CONSTANT(VIRTIO_BALLOON_S_MEMFREE),        CONSTANT(VIRTIO_BALLOON_S_MEMTOT),
    CONSTANT(VIRTIO_BALLOON_S_AVAIL),          CONSTANT(VIRTIO_BALLOON_S_CACHES),
    CONSTANT(VIRTIO_BALLOON_S_HTLB_PGALLOC),   CONSTANT(VIRTIO_BALLOON_S_HTLB_PGFAIL),
#ifdef VIRTIO_BALLOON_S_OOM_KILL
    CONSTANT(VIRTIO_BALLOON_S_OOM_KILL),
#endif
#ifdef VIRTIO_BALLOON_S_ALLOC_STALL
    CONSTANT(VIRTIO_BALLOON_S_ALLOC_STALL),
#endif
#ifdef VIRTIO_BALLOON_S_ASYNC_SCAN
    CONSTANT(VIRTIO_BALLOON_S_ASYNC_SCAN),
#endif
#ifdef VIRTIO_BALLOON_S_DIRECT_SCAN
    CONSTANT(VIRTIO_BALLOON_S_DIRECT_SCAN),
#endif
#ifdef VIRTIO_BALLOON_S_ASYNC_RECLAIM
    CONSTANT(VIRTIO_BALLOON_S_ASYNC_RECLAIM),
#endif
#ifdef VIRTIO_BALLOON_S_DIRECT_RECLAIM
    CONSTANT(VIRTIO_BALLOON_S_DIRECT_RECLAIM),
#endif
};

TEST_CASE("every tag has Linux's number and identifier") {
  for (const auto& [identifier, value] : linux_tags) {
    const balloon::statistic_info* row = balloon::find_statistic(identifier);
    REQUIRE(row != nullptr);
    CHECK(std::string_view(row->identifier) == identifier);
    CHECK(static_cast<unsigned>(row->tag) == value);
  }
  // A header with tags that the library does not know yet is no fault of the library's.
  WARN(VIRTIO_BALLOON_S_NR <= balloon::statistic_count);
  CHECK(std::size(linux_tags) ==
        std::min<std::size_t>(VIRTIO_BALLOON_S_NR, balloon::statistic_count));
  std::printf("compared %zu statistics tags of %d in Linux's headers\n", std::size(linux_tags),
              VIRTIO_BALLOON_S_NR);
}

TEST_CASE("every name is Linux's, and so is every name with a prefix") {
  constexpr const char* linux_names[] = VIRTIO_BALLOON_S_NAMES;
  constexpr const char* linux_prefixed[] = VIRTIO_BALLOON_S_NAMES_WITH_PREFIX("a prefix: ");
  constexpr auto prefixed = balloon::names_with_prefix("a prefix: ");
  CHECK(std::size(linux_names) == VIRTIO_BALLOON_S_NR);
  for (std::size_t i = 0; i < std::size(linux_tags); ++i) {
    CHECK(std::string_view(balloon::statistic_names[i]) == linux_names[i]);
    CHECK(std::string_view(balloon::statistic_table[i].name) == linux_names[i]);
    CHECK(std::string_view(prefixed[i]) == linux_prefixed[i]);
    char written[64];
    REQUIRE(balloon::write_name(balloon::statistic_table[i], "a prefix: ", written));
    CHECK(std::string_view(written) == linux_prefixed[i]);
  }
}

TEST_CASE("the features of rings and transports have Linux's numbers") {
  namespace feature = ballast::feature;
  CHECK(feature::notify_on_empty == VIRTIO_F_NOTIFY_ON_EMPTY);
  CHECK(feature::any_layout == VIRTIO_F_ANY_LAYOUT);
  CHECK(feature::indirect_desc == VIRTIO_RING_F_INDIRECT_DESC);
  CHECK(feature::event_idx == VIRTIO_RING_F_EVENT_IDX);
  CHECK(feature::version_1 == VIRTIO_F_VERSION_1);
  CHECK(feature::access_platform == VIRTIO_F_ACCESS_PLATFORM);
  CHECK(feature::ring_packed == VIRTIO_F_RING_PACKED);
  CHECK(feature::in_order == VIRTIO_F_IN_ORDER);
  CHECK(feature::order_platform == VIRTIO_F_ORDER_PLATFORM);
  CHECK(feature::sr_iov == VIRTIO_F_SR_IOV);
  CHECK(feature::ring_reset == VIRTIO_F_RING_RESET);
#ifdef VIRTIO_F_NOTIFICATION_DATA
  CHECK(feature::notification_data == VIRTIO_F_NOTIFICATION_DATA);
#endif
#ifdef VIRTIO_F_NOTIF_CONFIG_DATA
  CHECK(feature::notif_config_data == VIRTIO_F_NOTIF_CONFIG_DATA);
#endif
#ifdef VIRTIO_F_ADMIN_VQ
  CHECK(feature::admin_vq == VIRTIO_F_ADMIN_VQ);
#endif
}

TEST_CASE("the status bits are Linux's") {
  namespace status = ballast::status;
  CHECK(status::acknowledge == VIRTIO_CONFIG_S_ACKNOWLEDGE);
  CHECK(status::driver == VIRTIO_CONFIG_S_DRIVER);
  CHECK(status::driver_ok == VIRTIO_CONFIG_S_DRIVER_OK);
  CHECK(status::features_ok == VIRTIO_CONFIG_S_FEATURES_OK);
  CHECK(status::needs_reset == VIRTIO_CONFIG_S_NEEDS_RESET);
  CHECK(status::failed == VIRTIO_CONFIG_S_FAILED);
}

TEST_CASE("ring flags and alignments are Linux's") {
  CHECK(split::flag_next == VRING_DESC_F_NEXT);
  CHECK(split::flag_write == VRING_DESC_F_WRITE);
  CHECK(split::flag_indirect == VRING_DESC_F_INDIRECT);
  CHECK(split::no_interrupt == VRING_AVAIL_F_NO_INTERRUPT);
  CHECK(split::no_notify == VRING_USED_F_NO_NOTIFY);
  CHECK(split::descriptor_table_alignment == VRING_DESC_ALIGN_SIZE);
  CHECK(split::available_ring_alignment == VRING_AVAIL_ALIGN_SIZE);
  CHECK(split::used_ring_alignment == VRING_USED_ALIGN_SIZE);
}

TEST_CASE("ring words are where Linux has them") {
  CHECK(split::descriptor_size == sizeof(struct vring_desc));
  CHECK(split::descriptor_address(3) ==
        3 * sizeof(struct vring_desc) + offsetof(struct vring_desc, addr));
  // Length, flags and next are one word of the library's.
  CHECK(split::descriptor_rest(3) ==
        3 * sizeof(struct vring_desc) + offsetof(struct vring_desc, len));
  CHECK(offsetof(struct vring_desc, flags) == offsetof(struct vring_desc, len) + 4);
  CHECK(offsetof(struct vring_desc, next) == offsetof(struct vring_desc, len) + 6);
  CHECK(split::available_flags == offsetof(struct vring_avail, flags));
  CHECK(split::available_index == offsetof(struct vring_avail, idx));
  CHECK(split::used_flags == offsetof(struct vring_used, flags));
  CHECK(split::used_index == offsetof(struct vring_used, idx));

  for (std::uint32_t size = 1; size <= ballast::max_queue_size; size *= 2) {
    const std::uint32_t last = size - 1;
    CHECK(split::available_entry(last) ==
          offsetof(struct vring_avail, ring) + last * sizeof(vring_avail::ring[0]));
    const std::size_t element =
        offsetof(struct vring_used, ring) + last * sizeof(struct vring_used_elem);
    CHECK(split::used_id(last) == element + offsetof(struct vring_used_elem, id));
    CHECK(split::used_length(last) == element + offsetof(struct vring_used_elem, len));
    CHECK(split::used_event(size) == split::available_entry(size));
    CHECK(split::available_event(size) == split::used_id(size));
  }
}

TEST_CASE("a queue is as large as Linux makes it, and its parts lie where Linux places them") {
  for (std::uint32_t size = 1; size <= ballast::max_queue_size; size *= 2) {
    const ballast::placement at = split::place(0, size);
    CHECK(at.end == vring_size(size, VRING_USED_ALIGN_SIZE));
    // Every larger alignment of the legacy layout moves the used ring and nothing else.
    for (unsigned long alignment = 4; alignment <= 4096; alignment *= 2) {
      const auto padding = (alignment - at.layout.device_area % alignment) % alignment;
      CHECK(at.end + padding == vring_size(size, alignment));
    }
  }
  // The memory that Linux's function is given must be real, its addresses are all it computes.
  alignas(4096) static std::byte memory[65536];
  for (std::uint32_t size = 1; size <= 1024; size *= 2) {
    struct {
      unsigned num;
      void* desc;
      struct vring_avail* avail;
      void* used;
    } linux_ring{};
    vring_init(&linux_ring, size, memory, VRING_USED_ALIGN_SIZE);
    const auto offset = [](const void* p) {
      return static_cast<std::uint64_t>(static_cast<const std::byte*>(p) - memory);
    };
    const ballast::placement at = split::place(0, size);
    CHECK(at.layout.size == linux_ring.num);
    CHECK(at.layout.descriptor_area == offset(linux_ring.desc));
    CHECK(at.layout.driver_area == offset(linux_ring.avail));
    CHECK(at.layout.device_area == offset(linux_ring.used));

    struct vring events = {};
    events.num = size;
    events.avail = linux_ring.avail;
    events.used = static_cast<struct vring_used*>(linux_ring.used);
    CHECK(at.layout.driver_area + split::used_event(size) == offset(&vring_used_event(&events)));
    CHECK(at.layout.device_area + split::available_event(size) ==
          offset(&vring_avail_event(&events)));
  }
}

TEST_CASE("an event is due when Linux says so") {
  // Every distance, at both ends of the index and at the wrap.
  std::size_t same = 0;
  for (const std::uint32_t old : {0u, 1u, 32767u, 32768u, 65534u, 65535u})
    for (std::uint32_t moved = 0; moved < 65536; moved += 257)
      for (std::uint32_t event = 0; event < 65536; ++event) {
        const auto e = static_cast<std::uint16_t>(event);
        const auto now = static_cast<std::uint16_t>(old + moved);
        const auto from = static_cast<std::uint16_t>(old);
        same += ballast::need_event(e, now, from) == (vring_need_event(e, now, from) != 0);
      }
  CHECK(same == 6u * 256 * 65536);
}

} // namespace
