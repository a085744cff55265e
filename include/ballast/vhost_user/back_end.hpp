// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ballast/result.hpp>
#include <ballast/vhost_user/connection.hpp>
#include <ballast/vhost_user/device_rings.hpp>
#include <ballast/vhost_user/file.hpp>
#include <ballast/vhost_user/in_flight_file.hpp>
#include <ballast/vhost_user/memory_table.hpp>
#include <ballast/vhost_user/message.hpp>
#include <ballast/vhost_user/notification.hpp>
#include <ballast/vhost_user/protocol.hpp>
#include <ballast/vhost_user/queue_set.hpp>
#include <ballast/virtio/actions.hpp>
#include <ballast/virtio/device_model.hpp>
#include <ballast/virtio/device_status.hpp>
#include <ballast/virtio/features.hpp>
#include <ballast/virtqueue/layout.hpp>

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <poll.h>
#include <span>
#include <utility>

namespace ballast::vhost_user {

struct back_end_options {
  /// What may be negotiated of `protocol_feature::all`. Notifications as messages are slower, and
  /// only for simulations: they are to be asked for.
  std::uint64_t protocol_features = protocol_feature::all & ~protocol_feature::in_band;
  /// Buffers of a queue handled in one go.
  std::uint32_t budget = 64;
};

/// What happened since construction.
struct back_end_counters {
  std::uint64_t messages = 0;
  std::uint64_t refused = 0;        ///< messages that were understood and could not be carried out
  std::uint64_t malformed = 0;      ///< messages for which the connection was closed
  std::uint64_t config_changes = 0; ///< told to the front end
  std::uint64_t available_notifications[64]{}; ///< by queue
  std::uint64_t used_notifications[64]{};      ///< by queue
};

/// Serves a device to one front end at a time.
///
///     vhost_user::memory_table table;
///     my_host host(table);                 // gives memory back: table.regions(), by generation()
///     balloon::device<vhost_user::device_memory<256>, my_host, 256> device(host, options);
///     vhost_user::back_end<decltype(device), 256> back_end(device, table); // 256 in all three
///     back_end.connect(listener.accept()); // once poll() says that the listener is readable
///     while (back_end.is_connected()) {
///       (void)back_end.run_once(milliseconds);    // or watch, poll with files of one's own, serve
///       back_end.perform(device.set_target(pages)); // what the owner calls on the device itself
///     }
///
/// A queue begins when it is set up, enabled, and notified for the first time; all of them begin
/// together without that, once all that are set up could: a driver that has nothing to do notifies
/// nobody. Rings go on where they were, for a device that models `resumable_device_model`: stopped
/// and started again, over changes of the memory, and in a new back end after this process was
/// killed, if the front end kept the file of chains in flight.
///
/// The front end is not trusted with more than its own guest. A message that is malformed is
/// answered with an error, where its sender waits for an answer, and closes the connection; so
/// does one that cannot be carried out whose sender waits for none. The device stays as it is and
/// waits for the next connection. One exception: a front end that cuts the file of its memory, or
/// of its chains in flight, short ends this process by SIGBUS, as `file_mapping::of` says; serve
/// one whose files are sealed (F_SEAL_SHRINK), or each one in a process of its own. One thread at
/// a time. Ignore SIGPIPE. Hosted.
/// Spec: "Vhost-user Protocol".
template <class Device, std::uint32_t QueueSize = 256, std::uint16_t Queues = 8,
          std::endian E = std::endian::little>
class back_end {
 public:
  using memory_type = device_memory<QueueSize, E>;
  static_assert(device_model<Device, memory_type>, "the device is one of device_memory<QueueSize>");
  static_assert(Queues != 0 && Queues <= 64, "a bit of `actions` for each queue");

  /// Both outlive it: it uses them as it goes. `table` is its own to change.
  back_end(Device& served, memory_table& table, const back_end_options& options = {}) noexcept
      : device_(&served), table_(&table), options_(options), queues_(served, table) {}
  back_end(const back_end&) = delete;
  back_end& operator=(const back_end&) = delete;
  ~back_end() { disconnect(); }

  // The connection.

  [[nodiscard]] bool is_connected() const noexcept { return connection_.is_open(); }

  /// Serves another front end, at a connected socket.
  void connect(file socket) noexcept {
    disconnect();
    connection_ = connection(std::move(socket));
  }

  /// Lets go of the front end and its guest's memory. The device keeps what it knows.
  void disconnect() noexcept {
    queues_.disconnect();
    in_flight_.close();
    table_->clear();
    channel_.close();
    connection_.close();
    protocol_ = more_work_ = 0;
    status_ = 0;
    is_config_change_due_ = false;
  }

  static constexpr std::size_t watched_max = Queues + 1;
  /// What `serve` waits for, to be polled; how many.
  [[nodiscard]] std::size_t watch(std::span<pollfd, watched_max> to) const noexcept {
    std::size_t n = 0;
    if (!is_connected()) return n;
    to[n++] = {connection_.get(), POLLIN, 0};
    for (const queue_setup& q : queues_.all())
      if (q.available.is_open()) to[n++] = {q.available.get(), POLLIN, 0};
    return n;
  }
  /// Whether there is something to do without anything to wait for.
  [[nodiscard]] bool has_work() const noexcept {
    return (more_work_ & running()) != 0 || queues_.polled() != 0 || is_config_change_due_;
  }

  /// Does what is due: what was polled, and what was left. Errors: why the connection was closed.
  result<void> serve(std::span<const pollfd> polled) noexcept {
    for (const pollfd& p : polled) {
      if (p.revents == 0 || p.fd == connection_.get()) continue;
      for (std::uint16_t i = 0; i < Queues; ++i)
        if (queues_[i].available.is_open() && queues_[i].available.get() == p.fd) {
          if (!take_signal(queues_[i].available))
            queues_[i].available.close();
          else if (const error e = take_notification(i); e != error::none)
            return close(e);
        }
    }
    work();
    for (const pollfd& p : polled)
      if (p.revents != 0 && p.fd == connection_.get()) return take_messages();
    return {};
  }

  /// Waits, for so many milliseconds at most (-1: for ever), and serves.
  result<void> run_once(int milliseconds) noexcept {
    pollfd polled[watched_max]{};
    const std::size_t count = watch(polled);
    if (poll(polled, count, has_work() ? 0 : milliseconds) < 0) {
      for (pollfd& p : polled) p.revents = 0;
      if (errno != EINTR) return error::system_call_failed;
    }
    return serve(std::span(polled).first(count));
  }

  /// Does what the device asked for.
  void perform(const actions& due) noexcept {
    if (due.failure != error::none) failure_ = due.failure;
    for (std::uint16_t i = 0; i < Queues; ++i)
      if (due.notifies(i)) notify(i);
    more_work_ |= due.more_work;
    if (due.needs_reset) {
      status_ |= status::needs_reset;
      for (std::uint16_t i = 0; i < Queues; ++i)
        if (queues_.rings().has(i)) tell_queue(queues_[i].failed, back_end_request::queue_error, i);
    }
    if (due.config_changed || due.needs_reset) tell_config_changed();
  }

  // What is known.

  /// Bit n: queue n is with the device and enabled.
  [[nodiscard]] std::uint64_t running() const noexcept { return queues_.running(); }
  [[nodiscard]] const feature_set& accepted_features() const noexcept { return queues_.features(); }
  [[nodiscard]] std::uint64_t protocol_features() const noexcept { return protocol_; }
  /// Whether queues wait for a message that enables them: bit 30 was accepted with the features.
  [[nodiscard]] bool has_enabling() const noexcept { return queues_.has_enabling(); }
  [[nodiscard]] const back_end_counters& counters() const noexcept { return counters_; }
  /// How often the first queues began: drivers that were served.
  [[nodiscard]] std::uint64_t activations() const noexcept { return queues_.activations(); }
  /// The last call that the device refused, or why it needs a reset.
  [[nodiscard]] error failure() const noexcept { return failure_; }

 private:
  struct answer {
    error why = error::none;
    bool is_sent = false; ///< the message had an answer of its own
  };

  /// Performs what could be done, or says why it could not.
  [[nodiscard]] error carry_out(const result<actions>& due) noexcept {
    if (!due) return due.error();
    perform(*due);
    return error::none;
  }

  // Notifications.

  void work() noexcept {
    const std::uint64_t due = (more_work_ & running()) | queues_.polled();
    more_work_ &= ~due;
    for (std::uint16_t i = 0; i < Queues; ++i)
      if ((due >> i & 1) != 0) perform(queues_.process(i, options_.budget));
    if (is_config_change_due_) tell_config_changed();
  }

  [[nodiscard]] error take_notification(std::uint16_t i) noexcept {
    ++counters_.available_notifications[i];
    return carry_out(queues_.take_notification(i, options_.budget));
  }

  void notify(std::uint16_t i) noexcept {
    ++counters_.used_notifications[i];
    tell_queue(queues_[i].used, back_end_request::notify_queue, i);
  }
  void tell_queue(file& by, back_end_request what, std::uint16_t i) noexcept {
    if (!by.is_open() && is_in_band())
      (void)channel_.tell(what, queue_value{i, 0});
    else if (!signal(by))
      by.close();
  }

  void tell_config_changed() noexcept {
    is_config_change_due_ = false;
    if ((protocol_ & protocol_feature::config) == 0 || !channel_.is_open()) return;
    is_config_change_due_ = !channel_.tell(back_end_request::config_changed);
    counters_.config_changes += is_config_change_due_ ? 0 : 1;
  }

  [[nodiscard]] bool is_in_band() const noexcept {
    return (protocol_ & protocol_feature::in_band) != 0;
  }

  // Messages.

  void reset_device() noexcept {
    queues_.reset_device();
    more_work_ = 0;
    status_ = 0;
  }

  [[nodiscard]] result<void> close(error why) noexcept {
    disconnect();
    return why;
  }

  [[nodiscard]] result<void> take_messages() noexcept {
    for (unsigned n = 0; n < 16; ++n) { // then it is the queues' turn
      const auto is_whole = connection_.receive();
      if (!is_whole && is_whole.error() == error::connection_closed)
        return close(error::connection_closed);
      if (is_whole && !*is_whole) return {};
      ++counters_.messages;
      const result<message> m =
          is_whole ? decode(connection_.bytes(), connection_.files().size(), protocol_)
                   : result<message>(is_whole.error());
      if (!m) {
        ++counters_.malformed;
        answer_malformed();
        return close(m.error());
      }
      const answer done = handle(*m);
      const bool has_reply = (protocol_ & protocol_feature::reply_ack) != 0 && m->needs_reply;
      if (done.why != error::none) ++counters_.refused;
      result<void> sent;
      if (!done.is_sent && has_reply && !has_answer(m->what))
        sent = reply(std::uint64_t{done.why == error::none ? 0u : 1u});
      else if (done.why != error::none && !done.is_sent)
        return close(done.why);
      if (!sent) return close(sent.error());
      if (send_error_ != error::none) return close(std::exchange(send_error_, error::none));
      connection_.next();
    }
    return {};
  }

  /// As far as its sender can be waiting.
  void answer_malformed() noexcept {
    if (connection_.bytes().size() < sizeof(message_header)) return;
    const auto head = read_as<message_header>(connection_.bytes(), 0);
    const auto what = static_cast<request>(head.request);
    if (what == request::get_config)
      (void)reply_bytes({});
    else if (what == request::get_in_flight)
      (void)reply(in_flight_area{});
    else if (!has_answer(what) && (head.flags & message_header::needs_reply) != 0 &&
             (protocol_ & protocol_feature::reply_ack) != 0)
      (void)reply(std::uint64_t{1});
  }

  [[nodiscard]] result<void> reply_bytes(std::span<const std::byte> payload,
                                         int descriptor = -1) noexcept {
    const auto head = read_as<message_header>(connection_.bytes(), 0);
    return connection_.send(head.request, message_header::version | message_header::reply, payload,
                            descriptor);
  }
  template <class T>
  [[nodiscard]] result<void> reply(const T& value, int descriptor = -1) noexcept {
    std::byte bytes[sizeof(T)];
    write_as(bytes, 0, value);
    return reply_bytes(bytes, descriptor);
  }
  /// An answer of the message's own.
  template <class T> [[nodiscard]] answer answered(const T& value) noexcept {
    send_error_ = reply(value).error();
    return {error::none, true};
  }

  [[nodiscard]] answer handle(const message& m) noexcept {
    switch (m.what) {
    case request::get_features:
      // All that Linux says when a driver goes that has not enabled its queues; the memory of its
      // rings is used for something else then. If it is still there, it will notify.
      if (!has_enabling() && queues_.polled() == 0) queues_.pause();
      return answered(offered_bits());
    case request::set_features: return {set_features(m.value)};
    case request::set_owner:
    case request::reset_owner: return {};
    case request::get_protocol_features: return answered(options_.protocol_features);
    case request::set_protocol_features: return {set_protocol_features(m.value)};
    case request::get_queue_count:
      return answered(
          std::uint64_t{device_->queue_count() < Queues ? device_->queue_count() : Queues});
    case request::set_back_end_channel:
      channel_ = back_end_channel(std::move(connection_.files()[0]));
      return {};
    case request::get_config: return get_config(m);
    case request::set_config: return set_config(m);
    case request::set_memory_table: return {set_memory(m)};
    case request::add_memory_region:
    case request::remove_memory_region: return {change_memory(m)};
    case request::get_memory_slots: return answered(std::uint64_t{memory_slots_max});
    case request::get_in_flight: return get_in_flight(m);
    case request::set_in_flight: return {set_in_flight(m)};
    case request::reset_device: reset_device(); return {};
    case request::set_status: return {set_status(m.value)};
    case request::get_status: return answered(std::uint64_t{status_});
    default: break;
    }
    // The rest is about a queue.
    if (m.queue >= Queues || m.queue >= device_->queue_count()) return {error::invalid_queue_index};
    return handle_queue(m, static_cast<std::uint16_t>(m.queue));
  }

  [[nodiscard]] answer handle_queue(const message& m, std::uint16_t i) noexcept {
    queue_setup& q = queues_[i];
    switch (m.what) {
    case request::set_queue_size:
      if (m.value == 0 || m.value > device_->queue_size_max(i) || m.value > QueueSize)
        return {error::invalid_queue_size};
      if (q.ring.size != m.value) perform(queues_.take(i));
      q.ring.size = static_cast<std::uint32_t>(m.value);
      return {};
    case request::set_queue_base:
      perform(queues_.take(i));
      q.ring.is_own_base = q.ring.is_own_base && q.ring.base == m.value;
      q.ring.base = static_cast<std::uint32_t>(m.value);
      return {};
    case request::set_queue_addresses: return {carry_out(queues_.place(i, m.addresses))};
    case request::get_queue_base: return get_base(i);
    case request::set_available_file:
      q.available.close();
      if (m.has_file) q.available = std::move(connection_.files()[0]);
      q.is_polled = !m.has_file;
      q.is_stopped = false;
      return {carry_out(queues_.start_ready())};
    case request::set_used_file:
      q.used.close();
      if (m.has_file) q.used = std::move(connection_.files()[0]);
      return {};
    case request::set_error_file:
      q.failed.close();
      if (m.has_file) q.failed = std::move(connection_.files()[0]);
      return {};
    case request::enable_queue:
      return {carry_out(queues_.enable(i, m.value != 0, options_.budget))};
    case request::notify_queue: return {take_notification(i)};
    default: return {error::message_unknown};
    }
  }

  [[nodiscard]] feature_set offered() const noexcept {
    // No front end carries these out; and the log of chains in flight has no place for IN_ORDER.
    feature_set of = device_->offered_features() - feature_set{feature::access_platform,
                                                               feature::order_platform,
                                                               feature::sr_iov,
                                                               feature::notification_data,
                                                               feature::notif_config_data,
                                                               feature::admin_vq,
                                                               feature::suspend};
    if ((options_.protocol_features & protocol_feature::in_flight) != 0)
      of.clear(feature::in_order);
    return of;
  }
  [[nodiscard]] std::uint64_t offered_bits() const noexcept {
    const feature_set of = offered();
    return of.word32(0) | std::uint64_t{of.word32(1)} << 32 | has_protocol_features;
  }

  [[nodiscard]] error set_features(std::uint64_t bits) noexcept {
    feature_set set;
    set.set_word32(0, static_cast<std::uint32_t>(bits & ~has_protocol_features));
    set.set_word32(1, static_cast<std::uint32_t>(bits >> 32));
    result<void> checked = check_accepted(offered(), set, ring_feature_dependencies);
    if (checked) checked = device_->check_features(set);
    if (!checked) return checked.error();
    perform(queues_.set_features(set, (bits & has_protocol_features) != 0));
    return error::none;
  }

  [[nodiscard]] error set_protocol_features(std::uint64_t bits) noexcept {
    constexpr std::uint64_t needed =
        protocol_feature::reply_ack | protocol_feature::back_end_channel;
    if ((bits & ~options_.protocol_features) != 0) return error::feature_not_offered;
    if ((bits & protocol_feature::in_band) != 0 && (bits & needed) != needed)
      return error::feature_dependency;
    protocol_ = bits;
    queues_.set_in_band(is_in_band());
    return error::none;
  }

  [[nodiscard]] answer get_config(const message& m) noexcept {
    // Nothing else says that a driver which is notified in-band has set up all it wants to.
    if (is_in_band() && !has_enabling())
      if (const error e = carry_out(queues_.start_ready(true)); e != error::none) return {e};
    std::byte out[sizeof(config_access) + config_bytes_max];
    const auto value = std::span(out).subspan(sizeof(config_access), m.config.size);
    write_as(out, 0, m.config);
    const bool is_read =
        static_cast<const Device*>(device_)->read_config(m.config.offset, value).has_value();
    // No payload at all says that it failed.
    send_error_ =
        reply_bytes(std::span(out).first(is_read ? sizeof(config_access) + m.config.size : 0))
            .error();
    return {is_read ? error::none : error::config_out_of_range, true};
  }

  [[nodiscard]] answer set_config(const message& m) noexcept {
    queues_.note_config(m.config.offset, m.data);
    actions due = device_->write_config(m.config.offset, m.data);
    const error why = due.failure;
    perform(due);
    // What a driver writes closes no connection.
    const bool is_answered = m.needs_reply && (protocol_ & protocol_feature::reply_ack) != 0;
    return {why, why != error::none && !is_answered};
  }

  [[nodiscard]] error set_memory(const message& m) noexcept {
    memory_table next;
    for (std::uint32_t i = 0; i < m.regions; ++i)
      if (const auto added = next.add(m.region(i), std::move(connection_.files()[i])); !added)
        return added.error();
    return carry_out_change([&] {
      table_->take(next);
      return error::none;
    });
  }

  [[nodiscard]] error change_memory(const message& m) noexcept {
    return carry_out_change([&] {
      return m.what == request::add_memory_region
                 ? table_->add(m.region(0), std::move(connection_.files()[0])).error()
                 : table_->remove(m.region(0)).error();
    });
  }

  template <class Change> [[nodiscard]] error carry_out_change(Change&& change) noexcept {
    auto due = queues_.while_detached(change);
    if (!due) return due.error();
    // The device has done what was due; the change may have been refused all the same.
    const error why = due->needs_reset ? error::none : std::exchange(due->failure, error::none);
    perform(*due);
    return why;
  }

  [[nodiscard]] answer get_base(std::uint16_t i) noexcept {
    if (const error e = carry_out(queues_.stop(i)); e != error::none) return {e};
    return answered(queue_value{i, queues_[i].ring.base});
  }

  [[nodiscard]] error set_status(std::uint64_t bits) noexcept {
    if (bits > 0xff) return error::message_value;
    if (bits == 0) {
      reset_device();
      return error::none;
    }
    status_ = static_cast<std::uint8_t>(bits | (status_ & status::needs_reset));
    return (bits & status::driver_ok) != 0 ? carry_out(queues_.start_ready(true)) : error::none;
  }

  // Chains in flight.

  /// Errors: `wrong_state` (queues are running), `in_flight_invalid` (of more than there can be).
  [[nodiscard]] error check_area(const in_flight_area& area) const noexcept {
    if (queues_.rings().given() != 0) return error::wrong_state;
    return area.queues > Queues || area.queue_size > QueueSize ? error::in_flight_invalid
                                                               : error::none;
  }
  void note_in_flight() noexcept {
    queues_.set_in_flight(in_flight_.bytes(), in_flight_.area().queues,
                          in_flight_.area().queue_size);
  }

  [[nodiscard]] answer get_in_flight(const message& m) noexcept {
    in_flight_area area = m.in_flight;
    result<file> made = check_area(area);
    if (made.error() == error::none)
      made = in_flight_.make(area, queues_.features().test(feature::ring_packed));
    if (made)
      note_in_flight();
    else
      area.size = 0; // which says that there is none
    std::byte bytes[sizeof(area)];
    write_as(bytes, 0, area);
    send_error_ =
        reply_bytes(std::span(bytes).first(m.data.size()), made ? made->get() : -1).error();
    return {made.error(), true};
  }

  [[nodiscard]] error set_in_flight(const message& m) noexcept {
    if (const error e = check_area(m.in_flight); e != error::none) return e;
    const auto taken = in_flight_.take(connection_.files()[0], m.in_flight);
    if (taken) note_in_flight();
    return taken.error();
  }

  Device* device_;
  memory_table* table_;
  back_end_options options_;
  queue_set<Device, QueueSize, Queues, E> queues_;
  connection connection_;
  back_end_channel channel_;
  in_flight_file in_flight_;
  std::uint64_t protocol_ = 0; ///< features negotiated
  std::uint64_t more_work_ = 0;
  back_end_counters counters_;
  error failure_ = error::none;
  error send_error_ = error::none;
  std::uint8_t status_ = 0;
  bool is_config_change_due_ = false;
};

} // namespace ballast::vhost_user
