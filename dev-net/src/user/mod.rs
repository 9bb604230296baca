//! The host's network by NAT: to the guest a link with a gateway, which is also a DHCP server, and a resolver. No right to
//! reach anything is here: for each flow the broker is asked.
//!
//! ```text
//! frames of the guest ── frame (parse) ─┬─ ARP, DHCP, ICMP echo: answered here (answer)
//!                                       ├─ tcp: ends in a TCP stack of our own; bytes go on in a socket
//!                                       └─ udp: datagrams go on as they are
//! exit: asks for flows, waits for them ─┘            outbox: frames for the guest
//! ```
//!
//! The guest is hostile, and so are its peers: everything is parsed by checked accessors, and every table is limited. What is
//! for nobody, or not understood - IPv6, fragments, other protocols - is dropped.

mod answer;
mod dhcp;
mod exit;
mod frame;
mod outbox;
mod tcp;
mod udp;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipc::control::Orphan;
use ipc::flow::{Protocol, Verdict};
use smoltcp::wire::EthernetAddress;

use exit::{Exit, News};
use frame::{Key, Packet};
use outbox::Outbox;
use tcp::Tcp;
use udp::Udp;

/// See the module.
pub struct User {
    exit: Exit,
    outbox: Outbox,
    tcp: Tcp,
    udp: Udp,
    /// Connections of a process before this one, until the guest was asked about them.
    orphans: Vec<Orphan>,
    /// Our time's beginning.
    started: Instant,
}

impl User {
    /// A link for the guest with this address, which may believe to have connections that it has not, `orphans`. `flows` is
    /// the channel to the broker.
    pub fn new(mac: [u8; 6], flows: OwnedFd, orphans: Vec<Orphan>) -> io::Result<Self> {
        let (exit, started) = (Exit::new(flows)?, Instant::now());
        let outbox = Outbox::new(EthernetAddress(mac));
        Ok(Self { exit, outbox, tcp: Tcp::new(seed()), udp: Udp::default(), orphans, started })
    }

    /// The guest sends a frame, of whatever bytes.
    pub fn send(&mut self, frame: &[u8]) {
        let Some(packet) = frame::parse(frame) else { return };
        let now = self.now();
        match packet {
            Packet::Arp(request) => answer::arp(&request, &mut self.outbox),
            Packet::Dhcp(request) => dhcp::answer(request, &mut self.outbox),
            Packet::Echo(request) => answer::echo(&request, &mut self.outbox),
            Packet::Tcp(segment) => self.tcp.sent(&segment, now, &mut self.exit, &mut self.outbox),
            Packet::Udp(datagram) => self.udp.sent(&datagram, now, &mut self.exit),
        }
    }

    /// Does what flows and time demand.
    pub fn turn(&mut self) {
        let now = self.now();
        for news in self.exit.news() {
            match news {
                News::Answer(id, verdict, socket) => self.answered(id, verdict, socket, now),
                News::Ready(Protocol::Tcp, id, what) => self.tcp.ready(id, what, now, &mut self.outbox),
                News::Ready(Protocol::Udp, id, _) => self.udp.ready(id),
            }
        }
        self.udp.turn(now, &mut self.outbox);
        self.tcp.turn(now, &mut self.outbox);
    }

    fn answered(&mut self, id: u32, verdict: Verdict, socket: Option<OwnedFd>, now: Duration) {
        let socket = socket.filter(|_| verdict == Verdict::Dialled);
        if self.tcp.has(id) {
            self.tcp.answered(id, socket, now, &mut self.exit, &mut self.outbox);
        } else {
            self.udp.answered(id, socket, &mut self.exit);
        }
    }

    /// The guest takes frames. A guest that only listens to a connection would wait for ever for a process that is gone: it
    /// is sent a segment that cannot be right. It says what would be, and is answered, like whoever speaks of a connection
    /// that is not there, by a reset.
    pub fn guest_listens(&mut self) {
        for (port, to) in self.orphans.drain(..) {
            tcp::probe(Key { port, to }, &mut self.outbox);
        }
    }

    /// The next frame for the guest.
    pub fn next_frame(&self) -> Option<&[u8]> {
        self.outbox.first()
    }

    /// The guest has it.
    pub fn frame_done(&mut self) {
        self.outbox.done();
    }

    /// True if more would have been sent to the guest, had there been room. There is some now.
    pub fn held_back(&mut self) -> bool {
        self.outbox.take_held_back() | self.udp.has_more()
    }

    /// When [`Self::turn`] is to be called at the latest.
    pub fn due(&mut self) -> Option<Duration> {
        let now = self.now();
        [self.tcp.due(now), self.udp.due(now)].into_iter().flatten().min()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl AsFd for User {
    /// Readable when a flow or the broker has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }
}

/// Where sequence numbers begin must not be guessed by who cannot see them.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests;
