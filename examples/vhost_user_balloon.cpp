// SPDX-License-Identifier: BSD-3-Clause
//
// A balloon for guests of any VMM that speaks vhost-user, in a process of its own. --help explains
// the options and the commands; the parts are in vhost_user_balloon/. One thread, which sleeps in
// one place: poll().

#include "vhost_user_balloon/balloon.hpp"
#include "vhost_user_balloon/commands.hpp"
#include "vhost_user_balloon/control.hpp"
#include "vhost_user_balloon/front_end.hpp"
#include "vhost_user_balloon/options.hpp"
#include "vhost_user_balloon/poll_set.hpp"
#include "vhost_user_balloon/qmp.hpp"
#include "vhost_user_balloon/report.hpp"

#include "loopback/signals.hpp"

#include <csignal>
#include <cstdio>
#include <exception>
#include <poll.h>
#include <string>
#include <unistd.h>

namespace {

using namespace vhost_user_balloon;

void carry_out(const command& c, balloon& guest, const report& to) {
  switch (c.what) {
  case command::kind::none: break;
  case command::kind::target: guest.set_target(c.pages); break;
  case command::kind::statistics: guest.ask_statistics(); break;
  case command::kind::hint_start: guest.start_hinting(); break;
  case command::kind::hint_stop: guest.stop_hinting(); break;
  case command::kind::quit: guest.quit(); break;
  case command::kind::help: to.say("help", {{"text", commands_text}}, commands_text); break;
  case command::kind::bad: to.complain(c.why); break;
  }
}

int run(const options& chosen) {
  (void)std::signal(SIGPIPE, SIG_IGN); // whoever reads what this prints may go
  const loopback::signals inbox;
  const report to(chosen.is_json);
  balloon guest(chosen, to);
  front_end front(guest, to);
  control<balloon> managers(guest);
  std::string why = front.open(chosen.socket);
  if (why.empty() && !chosen.control.empty()) why = managers.open(chosen.control);
  if (!why.empty() || !inbox.is_open()) {
    to.complain(why.empty() ? "no signalfd to be had" : why);
    return 1;
  }
  to.say("listening", {{"socket", chosen.socket}}, "waiting for a front end at " + chosen.socket);

  line_input commands(STDIN_FILENO);
  poll_set polled;
  while (!guest.is_ending()) {
    polled.clear();
    polled.add(inbox.fd(), POLLIN);
    polled.add(commands.fd(), POLLIN);
    front.add_to(polled);
    managers.add_to(polled);
    polled.wait(front.has_work() ? 0 : guest.time_to_tick());

    if (polled.ready(inbox.fd()) != 0) {
      (void)inbox.take(); // one that nobody took would end the program where it is let through
      break;
    }
    front.serve(polled);
    if (polled.ready(commands.fd()) != 0)
      for (const std::string& line : commands.take()) carry_out(parse_command(line), guest, to);
    managers.serve(polled);
    guest.tick();
    front.carry_out(guest.take_due());
    if (guest.look()) managers.tell(qmp_event("BALLOON_CHANGE", {{"actual", actual_bytes(guest)}}));
    front.carry_out(guest.take_due());
  }
  managers.tell(
      qmp_event("SHUTDOWN", {{"guest", false},
                             {"reason", guest.is_ending() ? "host-qmp-quit" : "host-signal"}}));
  to.say("ended", "ended");
  return 0;
}

} // namespace

int main(int count, char** arguments) {
  const options chosen = parse_options(count, arguments);
  try {
    return run(chosen);
  } catch (const std::exception& problem) { // the heap, and so that the sockets' files go
    (void)std::fprintf(stderr, "vhost_user_balloon: %s\n", problem.what());
    return 1;
  }
}
