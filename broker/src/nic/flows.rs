//! The way out of one card's process: its requests, each judged and dialled, and the datagrams of its UDP flows, which the
//! broker passes on without looking into them (why: [`ipc::flow`]).
//!
//! The process is hostile: requests come at a rate, flows are limited, what it sends is never more than a datagram, and
//! nothing here waits for it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ipc::control::Orphan;
use ipc::flow::{self, Heard, MAX_DATAGRAM, MAX_FLOWS, Protocol, Request, Verdict};
use ipc::outcome::cause_chain;
use ipc::rate::Bucket;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::Nic;
use super::dial::dial;
use crate::supervise::NEWS;

/// Requests that are taken at once, and a second. Those beyond wait.
const DIALS: (u32, u32) = (512, 256);
/// Most UDP flows at a time: each has two descriptors here.
pub const MAX_RELAYS: usize = 64;
/// What helps a guest that asks for names in vain.
const NO_RESOLVER: &str = "this host names no resolver by IPv4: say dns=ADDRESS";
/// Packets that are taken of one descriptor at one go.
const TURN: usize = 32;

/// A UDP flow.
#[derive(Debug)]
struct Relay {
    /// To the card's process.
    inner: OwnedFd,
    /// To the guest's peer.
    outer: OwnedFd,
}

/// What of it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There are requests.
    Requests,
    /// The process has sent datagrams in this flow.
    Inner(usize),
    /// The peer has.
    Outer(usize),
}

/// See the module.
#[derive(Debug)]
pub struct Flows {
    name: String,
    nic: Nic,
    /// None once the process has broken the protocol.
    requests: Option<OwnedFd>,
    /// By number; a flow keeps its own.
    relays: Vec<Option<Relay>>,
    rate: Bucket,
    /// TCP connections that were dialled last, by this process and those before.
    recent: VecDeque<Orphan>,
    /// How often refusals are told: a guest makes as many as it likes.
    news: Bucket,
    buffer: Box<[u8]>,
}

impl Flows {
    /// For the card called `name`, whose last process left these connections, and the socket for its process.
    pub fn new(name: &str, nic: &Nic, orphans: &[Orphan]) -> nix::Result<(Self, OwnedFd)> {
        let ((requests, theirs), now) = (flow::pair()?, Instant::now());
        let (rate, news) = (Bucket::new(DIALS.0, DIALS.1, now), Bucket::new(NEWS.0, NEWS.1, now));
        let (name, nic, requests) = (name.to_owned(), nic.clone(), Some(requests));
        let buffer = vec![0; MAX_DATAGRAM + 1].into_boxed_slice();
        let (relays, recent) = (Vec::new(), orphans.iter().copied().collect());
        Ok((Self { name, nic, requests, relays, rate, recent, news, buffer }, theirs))
    }

    /// The connections that the guest may believe to have, now that its process is gone.
    pub fn into_orphans(self) -> Vec<Orphan> {
        self.recent.into()
    }

    fn remember(&mut self, orphan: Orphan) {
        self.recent.retain(|known| *known != orphan);
        self.recent.push_back(orphan);
        if self.recent.len() > MAX_FLOWS {
            self.recent.pop_front();
        }
    }

    /// What is to be waited for, all for input.
    pub fn sources(&self) -> impl Iterator<Item = (End, BorrowedFd<'_>)> {
        let relays = self.relays.iter().enumerate().filter_map(|(number, relay)| Some((number, relay.as_ref()?)));
        let ends = relays.flat_map(|(number, relay)| {
            [(End::Inner(number), relay.inner.as_fd()), (End::Outer(number), relay.outer.as_fd())]
        });
        self.requests.iter().map(|requests| (End::Requests, requests.as_fd())).chain(ends)
    }

    /// Serves one end.
    pub fn serve(&mut self, end: End) {
        match end {
            End::Requests => self.hear(),
            End::Inner(number) => self.pass_out(number),
            End::Outer(number) => self.pass_in(number),
        }
    }

    fn hear(&mut self) {
        for _ in 0..TURN {
            let Some(requests) = &self.requests else { return };
            match flow::next_request(requests.as_fd()) {
                Heard::Some(request) => self.decide(request),
                Heard::Nothing => return,
                Heard::Closed => return self.requests = None,
                Heard::Garbage => {
                    tracing::warn!("{}: its process sends what is no request: it gets no more flows", self.name);
                    return self.requests = None;
                }
            }
        }
    }

    fn decide(&mut self, request: Request) {
        let (verdict, socket) = self.judge(request);
        let Some(requests) = &self.requests else { return };
        // A process that does not take its answers has no flow of it.
        if let Err(error) = flow::answer(requests.as_fd(), request.id, verdict, socket.as_ref().map(AsFd::as_fd)) {
            tracing::debug!("{}: answering its process: {error}", self.name);
        }
    }

    fn judge(&mut self, Request { protocol, port, to, .. }: Request) -> (Verdict, Option<OwnedFd>) {
        let name = protocol.name();
        let place = match self.place(protocol, to) {
            Ok(place) => place,
            Err(remedy) => {
                if self.news.take(Instant::now()) {
                    tracing::warn!("{}: refused: {name} to {to}: {remedy}", self.name);
                }
                return (Verdict::Refused, None);
            }
        };
        let dialled = if self.rate.take(Instant::now()) { self.dial(protocol, place) } else { Err(Errno::EAGAIN) };
        match dialled {
            Ok(socket) => {
                tracing::debug!("{}: dialled: {name} to {place}", self.name);
                if protocol == Protocol::Tcp {
                    self.remember((port, to));
                }
                (Verdict::Dialled, Some(socket))
            }
            Err(error) => {
                tracing::debug!("{}: not dialled: {name} to {place}: {}", self.name, cause_chain(&error));
                (Verdict::Failed, None)
            }
        }
    }

    /// Whom the guest means by an address, if it may reach that; else what would let it.
    fn place(&self, protocol: Protocol, to: SocketAddrV4) -> Result<SocketAddrV4, String> {
        let network = |address: Ipv4Addr| u32::from(address) >> (32 - flow::PREFIX);
        let place = match *to.ip() {
            // The operator has named whom to ask, or the host does: no rule is needed.
            flow::RESOLVER if to.port() == 53 => return self.nic.dns.ok_or(NO_RESOLVER.into()),
            flow::GATEWAY => SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port()),
            other if network(other) == network(flow::GATEWAY) => return Err("nobody is there".into()),
            _ => to,
        };
        let remedy = || format!("if the guest is to reach that, say allow={place}/{}", protocol.name());
        self.nic.policy.permits(protocol, place).then_some(place).ok_or_else(remedy)
    }

    fn dial(&mut self, protocol: Protocol, to: SocketAddrV4) -> nix::Result<OwnedFd> {
        if protocol == Protocol::Tcp {
            return dial(protocol, to);
        }
        let free = self.relays.iter().position(Option::is_none);
        if free.is_none() && self.relays.len() >= MAX_RELAYS {
            return Err(Errno::EMFILE);
        }
        let (inner, theirs) = flow::pair()?;
        let relay = Some(Relay { inner, outer: dial(protocol, to)? });
        match free {
            Some(number) => self.relays[number] = relay,
            None => self.relays.push(relay),
        }
        Ok(theirs)
    }

    /// A datagram that finds no room is lost, as it may be on any wire.
    fn pass_out(&mut self, number: usize) {
        for _ in 0..TURN {
            let Some(Some(relay)) = self.relays.get(number) else { return };
            match recv(relay.inner.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if (1..=MAX_DATAGRAM).contains(&length) => {
                    let _ = send(relay.outer.as_raw_fd(), &self.buffer[..length], quietly());
                }
                // No datagram is so long.
                Ok(length) if length > 0 => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Ok(_) | Err(_) => return self.relays[number] = None,
            }
        }
    }

    fn pass_in(&mut self, number: usize) {
        for _ in 0..TURN {
            let Some(Some(relay)) = self.relays.get(number) else { return };
            match recv(relay.outer.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                // An empty packet would be the end of the flow.
                Ok(0) => {}
                Ok(length) => drop(send(relay.inner.as_raw_fd(), &self.buffer[..length], quietly())),
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // What came back of an earlier datagram, such as that nobody listens: the next may fare better.
                Err(_) => {}
            }
        }
    }
}

fn quietly() -> MsgFlags {
    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL
}

#[cfg(test)]
mod tests;
